// The network, in a thread of its own: one supervision step after the other, until the rules accept
// an answer. It tells the page of every step.

import * as ort from "./ort/ort.wasm.min.mjs";
import { accepts, apply, identity, randomSymmetry, undo, undoPlaces } from "./rules.js";

// Tokens are padding, a blank, and the digits from 1 on.
const FIRST_DIGIT = 2;
let current = 0;

const opened = open();
opened.then(
  ({ about, size, seconds, threads }) => {
    postMessage({ kind: "ready", size, seconds, threads, bytes: about.bytes });
  },
  (error) => postMessage({ kind: "failed", text: String(error.message || error) }),
);

async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

async function open() {
  const begun = performance.now();
  const about = await (await fetched("model.onnx.json")).json();
  const weights = new Uint8Array(await (await fetched("model.onnx")).arrayBuffer());
  about.bytes = weights.length;
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  const session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  const size = Math.sqrt(about.task.seq_len);
  return { about, session, size, threads, seconds: (performance.now() - begun) / 1000 };
}

/** Run a supervision step of one puzzle; give the next latents, the answer and its beliefs. */
async function step({ about, session, size }, grid, latents) {
  const shape = [1, ...about.inputs.z_H.shape.slice(1)];
  const zeros = () => new Float32Array(shape[1] * shape[2]);
  const tokens = Int32Array.from(grid, (digit) => (digit ? digit - 1 + FIRST_DIGIT : 1));
  const feed = {
    tokens: new ort.Tensor("int32", tokens, [1, tokens.length]),
    begin: new ort.Tensor("bool", [latents === null], [1]),
    z_H: latents ? latents.new_z_H : new ort.Tensor("float32", zeros(), shape),
    z_L: latents ? latents.new_z_L : new ort.Tensor("float32", zeros(), shape),
  };
  if (about.inputs.identifiers) {
    feed.identifiers = new ort.Tensor("int32", Int32Array.of(about.task.blank_identifier_id), [1]);
  }
  const found = await session.run(feed);
  const logits = found.logits.data;
  const count = about.task.vocab_size;
  const digits = [];
  const confidence = [];
  for (let cell = 0; cell < size * size; cell += 1) {
    const own = logits.subarray(cell * count, (cell + 1) * count);
    const best = own.indexOf(Math.max(...own));
    let sum = 0;
    for (const logit of own) sum += Math.exp(logit - own[best]);
    digits.push(best >= FIRST_DIGIT ? best - FIRST_DIGIT + 1 : 0);
    confidence.push(1 / sum);
  }
  const q = 1 / (1 + Math.exp(-found.q.data[0]));
  return { latents: found, digits, confidence, q };
}

async function solve(id, puzzle) {
  const model = await opened;
  const { size } = model;
  const search = { steps: model.about.steps, rollouts: 8, ...model.about.search };
  const begun = performance.now();
  let steps = 0;
  for (let rollout = 1; rollout <= search.rollouts; rollout += 1) {
    const symmetry = rollout === 1 ? identity(size) : randomSymmetry(size);
    const copy = apply(symmetry, puzzle);
    let latents = null;
    for (let number = 1; number <= search.steps; number += 1) {
      // Messages of the page, such as another puzzle, come in between.
      await new Promise((resolve) => { setTimeout(resolve); });
      if (id !== current) return;
      const found = await step(model, copy, latents);
      latents = found.latents;
      steps += 1;
      const answer = undo(symmetry, found.digits);
      const confidence = undoPlaces(symmetry, found.confidence);
      const accepted = accepts(answer, puzzle, size);
      const seconds = (performance.now() - begun) / 1000;
      const told = { id, rollout, step: number, steps, seconds, answer, confidence, q: found.q };
      postMessage({ kind: "step", accepted, ...told });
      if (accepted) {
        postMessage({ kind: "done", accepted, ...told });
        return;
      }
    }
  }
  postMessage({ kind: "done", accepted: false, id, steps, rollout: search.rollouts });
}

self.onmessage = ({ data }) => {
  current = data.id;
  if (data.puzzle) {
    solve(data.id, data.puzzle).catch((error) => {
      postMessage({ kind: "failed", id: data.id, text: String(error.message || error) });
    });
  }
};
