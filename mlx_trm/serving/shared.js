"use strict";
// What both pages use: requests, messages, elements. Foreign text is put in as text alone.
const byId = (id) => document.getElementById(id);

function element(name, attributes, ...content) {
  const node = document.createElement(name);
  for (const key in attributes) {
    if (key === "class") node.className = attributes[key];
    else if (key in node && typeof attributes[key] !== "string") node[key] = attributes[key];
    else node.setAttribute(key, attributes[key]);
  }
  node.append(...content);
  return node;
}

function showMessage(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

// What a failed request is answered with: {"error": ...}, and perhaps when to try again.
async function failure(response) {
  let text = `the server answers ${response.status}`;
  try { text = (await response.json()).error || text; } catch (_) { /* no JSON */ }
  return new Error(text);
}

async function ask(path, body, options) {
  const post = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, { ...post, ...options, headers: { ...post.headers, ...(options || {}).headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; is it still running?");
  }
  if (!response.ok) throw await failure(response);
  return response;
}

const askJson = async (path, body) => (await ask(path, body)).json();

// Server-sent events of a request with a body, which EventSource cannot send.
async function askEvents(path, body, signal, take) {
  const response = await ask(path, body, { signal, headers: { Accept: "text/event-stream" } });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(function (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("the connection to the server was lost; is it still running?");
    });
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = /^event: (.*)\ndata: (.*)$/.exec(block);
      if (found) take(found[1], JSON.parse(found[2]));
    }
  }
}
