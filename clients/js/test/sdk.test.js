// Behaviour of the JavaScript SDK alone: stores, callbacks, and differences between runtimes.

import assert from "node:assert/strict";
import { mkdtemp, readdir, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Client, FetchFailed, StoreFailed } from "../src/index.js";
import { FileStore } from "../src/node.js";

/** Return a WebSocket class that never opens and, as in some runtimes, reports that with one event only. */
function deaf(event) {
  return class {
    constructor() {
      setTimeout(() => this[`on${event}`]?.({ code: 1006, reason: "" }));
    }

    close() {}
  };
}

const offline = () => Promise.reject(new TypeError("fetch failed"));

/** Return a promise of the first error that the client reports. */
function firstError(client) {
  return new Promise((resolve) => client.addEventListener("error", resolve));
}

for (const event of ["close", "error"]) {
  test(`a handshake that fails with "${event}" alone is noticed at once`, async () => {
    const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf(event), fetch: offline });
    const told = firstError(client);
    client.start();
    assert.equal((await told).name, "ConnectionLost");
    await client.close();
  });
}

for (const [name, body, status] of [
  ["a page", "<html></html>", 403],
  ["another's JSON", '{"error": {"code": 403, "message": "no"}}', 403],
  ["another's code", '{"error": {"code": "denied", "message": "no"}}', 403],
]) {
  test(`${name} that answers ${status} does not end the client`, async () => {
    const fetch = async () => new Response(body, { status });
    const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch });
    const told = firstError(client);
    client.start();
    assert.notEqual((await told).name, "Ended");
    assert.notEqual(client.state.status, "ended");
    await client.close();
  });
}

test("the server's own 403 does", async () => {
  const fetch = async () => new Response('{"error": {"code": "forbidden", "message": "no"}}', { status: 403 });
  const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch });
  const told = firstError(client);
  client.start();
  assert.equal((await told).name, "Ended");
});

test("values that do not come back from JSON are refused", async () => {
  const client = new Client("http://127.0.0.1:1", "t");
  class Point {}
  for (const value of [undefined, NaN, Infinity, new Date(), { at: new Date() }, [undefined], new Map(), new Point(), 1n]) {
    await assert.rejects(client.cache.get("key", () => value, { persistent: true }), TypeError);
    assert.equal(client.cache.peek("key"), undefined);
  }
  const kept = { a: [1, "b", null, true, { c: 1.5 }] };
  assert.deepEqual(await client.cache.get("key", () => kept, { persistent: true }), kept);
  const date = new Date();
  assert.equal(await client.cache.get("other", () => date), date, "what is not kept may be anything");
});

test("a fetch that never settles frees its key", async () => {
  const client = new Client("http://127.0.0.1:1", "t");
  await assert.rejects(client.cache.get("key", () => new Promise(() => {}), { within: 10 }), FetchFailed);
  assert.equal(await client.cache.get("key", () => 2), 2);
});

test("one store at a time uses a file, and the lock of an ended process does not count", async () => {
  const folder = await mkdtemp(join(tmpdir(), "momentum-"));
  const path = join(folder, "momentum.json");
  await writeFile(join(folder, ".momentum.json.lock"), "999999999");
  await writeFile(`${path}.new`, "left over", { mode: 0o666 });
  const first = new FileStore(path);
  await Promise.all([first.save("1"), first.save("2")]);
  await first.save("3");
  await assert.rejects(new FileStore(path).load(), /give each client a file of its own/);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await first.close();
  const second = new FileStore(path);
  assert.equal(await second.load(), "3");
  await second.close();
  assert.deepEqual((await readdir(folder)).sort(), ["momentum.json", "momentum.json.new"]);
});

test("a lock of an earlier process with our number, an empty one, and a close while it is taken", async () => {
  const folder = await mkdtemp(join(tmpdir(), "momentum-"));
  const path = join(folder, "momentum.json");
  for (const left of [String(process.pid), ""]) {
    await writeFile(join(folder, ".momentum.json.lock"), left);
    const store = new FileStore(path);
    assert.equal(await store.load(), null);
    await store.close();
  }
  const early = new FileStore(path);
  const loading = early.load();
  await early.close();
  await loading.catch(() => {});
  await assert.rejects(early.save("late"), /was closed/);
  const next = new FileStore(path);
  assert.equal(await next.load(), null);
  await next.close();
  assert.deepEqual(await readdir(folder), []);
});

test("a store that could not be read is not overwritten, and is read later", async () => {
  const token = `e30.${Buffer.from('{"sub": "a"}').toString("base64url")}.x`;
  const entry = "00000000-0000-4000-8000-000000000001";
  const kept = { version: 1, user_id: "a", last_event_id: null, known_at: null, state: null, cache: {}, outbox: [entry] };
  let text = JSON.stringify(kept);
  let failures = 1;
  const store = {
    load() {
      if ((failures -= 1) >= 0) throw new Error("EIO");
      return text;
    },
    save: (/** @type {string} */ other) => void (text = other),
  };
  const client = new Client("http://127.0.0.1:1", token, { WebSocket: deaf("close"), fetch: offline, store, patience: 40 });
  client.start();
  while (client.pendingCount === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await client.close();
  assert.deepEqual(JSON.parse(text).outbox, [entry]);
});

test("a logout while the store is read discards the stored data", async () => {
  let text = JSON.stringify({ version: 1, user_id: "a", last_event_id: null, known_at: null, state: null, cache: { k: { value: 1, at: 1 } }, outbox: [] });
  const store = {
    load: () => new Promise((resolve) => setTimeout(() => resolve(text), 30)),
    save: (/** @type {string} */ other) => void (text = other),
  };
  const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch: offline, store, userId: "a" });
  client.start();
  await client.clear();
  await new Promise((resolve) => setTimeout(resolve, 60));
  assert.equal(client.cache.peek("k"), undefined);
  assert.equal(text, "");
});

test("a signal closes the client", async () => {
  const closing = new AbortController();
  const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch: offline, signal: closing.signal });
  client.start();
  closing.abort();
  await assert.rejects(client.waitUntilLive(), { name: "Offline" });
  const late = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch: offline, signal: closing.signal });
  late.start();
  await assert.rejects(late.waitUntilLive(), { name: "Offline" });
});

test("the state is the same object for as long as it is the same, as React wants it", async () => {
  const client = new Client("http://127.0.0.1:1", "t", { WebSocket: deaf("close"), fetch: offline, userId: null });
  let told = 0;
  const { getState, onStateChange } = client;
  const untie = onStateChange(() => (told += 1));
  const before = getState();
  assert.equal(getState(), before);
  assert.equal(client.state, before);
  const error = firstError(client);
  client.start();
  await error;
  await client.close();
  untie();
  assert.equal(told <= 1, true);
  assert.equal(getState(), getState());
});

test("an unencrypted connection to another machine causes a warning", () => {
  for (const [url, warned] of [
    ["http://10.0.0.7:8787", true],
    ["ws://example.com", true],
    ["https://example.com", false],
    ["http://127.0.0.1:1", false],
    ["ws://localhost", false],
    ["http://[::1]:1", false],
    ["http://localhost.example.com", true],
  ]) {
    const told = [];
    new Client(url, "t", { log: (level, message) => told.push([level, message]) });
    assert.equal(told.some(([level, message]) => level === "warning" && message.includes("not encrypted")), warned, url);
  }
});

test("a mark that cannot be stored is reported as not stored", async () => {
  const store = {
    load: () => null,
    save() {
      throw new Error("full");
    },
  };
  const token = `e30.${Buffer.from('{"sub": "a"}').toString("base64url")}.x`;
  const client = new Client("http://127.0.0.1:1", token, { WebSocket: deaf("close"), fetch: offline, store });
  const error = firstError(client);
  client.start();
  await error;
  await assert.rejects(client.markNotificationRead("00000000-0000-4000-8000-000000000000"), StoreFailed);
  assert.equal(client.pendingCount, 1);
  await client.close();
});

test("one string in place of a list of channels is refused", async () => {
  const client = new Client("http://127.0.0.1:1", "token", { WebSocket: class {} });
  await assert.rejects(client.subscribe("interventions:coaches"), { name: "TypeError", message: /list of names/ });
  await assert.rejects(client.unsubscribe("interventions:coaches"), TypeError);
});
