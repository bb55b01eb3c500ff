// A service worker: it keeps the page's files, so that the page opens without a network, and it says
// that the page is alone in its process, without which browsers give WebAssembly one thread.

const KEPT = "mlx_trm-sudoku";
const ALONE = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", () => { self.skipWaiting(); });
self.addEventListener("activate", (event) => { event.waitUntil(self.clients.claim()); });

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const own = new URL(request.url).origin === self.location.origin;
  if (request.method === "GET" && own) event.respondWith(answer(request));
});

/** The server's answer where there is one, so that a new build is seen; else what was kept. */
async function answer(request) {
  const kept = await caches.open(KEPT);
  try {
    const found = await fetch(request, { cache: "no-cache" });
    if (!found.ok) return found;
    await kept.put(request, found.clone());
    return alone(found);
  } catch (error) {
    const found = await kept.match(request);
    if (!found) throw error;
    return alone(found);
  }
}

function alone(found) {
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(ALONE)) headers.set(name, value);
  const { status, statusText } = found;
  return new Response(found.body, { status, statusText, headers });
}
