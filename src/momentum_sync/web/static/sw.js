// Keeps the pages for when there is no network, from the first visit on: what the server has comes first, and what it had
// otherwise. Nothing that stands behind `#` or `?` in an address is kept, for there may be a token.

const CACHE = "pages 0.1.0"; // what another version kept is deleted
const PATIENCE_MS = 4_000;
const FILES = [
  "user.html",
  "coach.html",
  "style.css",
  "page.js",
  "charts.js",
  "user.js",
  "coach.js",
  "sdk/browser.js",
  "sdk/cache.js",
  "sdk/client.js",
  "sdk/connection.js",
  "sdk/errors.js",
  "sdk/protocol.js",
  "sdk/index.js",
  "sdk/replica.js",
  "sdk/listeners.js",
  "sdk/messages.js",
  "sdk/outbox.js",
  "sdk/state.js",
  "sdk/store.js",
  "sdk/stream.js",
  "sdk/reporter.js",
];

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
});
self.addEventListener("activate", (event) => event.waitUntil(takeOver()));

async function takeOver() {
  for (const name of await caches.keys()) if (name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const isOurs = request.method === "GET" && request.url.startsWith(self.registration.scope);
  if (isOurs) event.respondWith(freshOrKept(request));
});

async function freshOrKept(request) {
  const address = new URL(request.url);
  const bare = address.origin + address.pathname;
  const cache = await caches.open(CACHE);
  const kept = await cache.match(bare);
  try {
    // Without a page of ours to show instead, whatever comes is waited for.
    const response = await fetch(request, kept && { signal: AbortSignal.timeout(PATIENCE_MS) });
    // Not what a proxy answers in the server's place; and a full storage is no reason to show what is old.
    if (response.ok && kept && !response.redirected) await cache.put(bare, response.clone()).catch(() => {});
    return kept && response.status >= 500 ? kept : response;
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
}
