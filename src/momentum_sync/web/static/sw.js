// Stores the pages for use without a network, from the first visit on. The server's response comes first, the stored one
// otherwise. Fragments and queries of URLs are not stored, because they may contain a token.

const CACHE = "pages"; // replaced by the server with a name that changes with any file: the caches of others go
const PATIENCE_MS = 4_000;
const FILES = ["user.html"]; // replaced by the server with the names of all files

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
    // Without a stored page, wait for the response.
    const response = await fetch(request, kept && { signal: AbortSignal.timeout(PATIENCE_MS) });
    // Do not store a proxy's answer; a full storage is no reason to show old data.
    if (response.ok && kept && !response.redirected) await cache.put(bare, response.clone()).catch(() => {});
    return kept && response.status >= 500 ? kept : response;
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
}
