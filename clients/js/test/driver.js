// A client controlled by commands, for the scenarios that test every SDK (tests/sdk). Runs in Node and in a browser.
//
// `drive(write, makeStore)` returns `command`, which executes one command; `write` gets every event and result.

import { Client } from "../src/index.js";

/**
 * @param {(happened: object) => void} write
 * @param {(name: string) => any} makeStore
 * @param {object} environment more options of the client, such as a WebSocket class for a runtime without one
 */
export function drive(write, makeStore, environment = {}) {
  let client;
  let ahead = 0;
  let tokens = [];
  let asked = 0;
  const held = new Map();
  let fetches = 0;

  const commands = {
    open({ url, token, patience, channels, store, store_failures: failures, user_id: userId, client_id: clientId }) {
      tokens = token;
      const kept = store ? makeStore(store) : null;
      if (kept !== null && failures) failing(kept, failures);
      client = new Client(
        url,
        async () => {
          asked += 1;
          write({ token: asked });
          const token = tokens.length > 1 ? tokens.shift() : tokens[0];
          if (token === "!fail") throw new Error("no network, no token"); // a provider that fails
          if (token !== "!hold") return token;
          await new Promise((resolve) => held.set("token", resolve)); // one that answers when it is released
          return tokens[0];
        },
        {
          userId,
          ...(clientId && { clientId }),
          channels,
          patience: patience * 1000,
          store: kept,
          clock: () => Date.now() + ahead,
          ...environment,
        },
      );
      client.addEventListener("error", (error) => write({ error: error.name, code: error.code ?? null }));
      client.addEventListener("invalidated", (keys) => write({ invalidated: keys.toSorted?.() ?? [...keys].sort() }));
      client.addEventListener("state", (state) => write({ state }));
      void iterate(client.events());
      client.start();
      write({ state: client.state });
    },
    mark_read: ({ id }) =>
      client.markNotificationRead(id).then(
        () => write({ kept: id }),
        (error) => write(error.name === "StoreFailed" ? { not_kept: id } : { failed: `${error}` }),
      ),
    sent: () => client.flush().then(() => write({ sent: true })),
    momentum: () => client.requestMomentumUpdate().then((data) => write({ momentum: data })),
    subscribe: ({ channels }) =>
      client.subscribe(channels).then(
        () => write({ channels: client.channels }),
        (error) => write({ error: error.name, code: error.code }),
      ),
    advance({ seconds }) {
      ahead += seconds * 1000;
    },
    wake: () => client.reconnectNow(),
    get({ key, value, persistent, hold, within = 60 }) {
      const fetch = () => {
        fetches += 1;
        write({ fetched: key, fetches });
        return hold ? new Promise((resolve) => held.set(key, () => resolve(value))) : value;
      };
      return client.cache.get(key, fetch, { persistent, within: within * 1000 }).then(
        (got) => write({ key, value: got }),
        (error) => write({ error: error.name, code: null }),
      );
    },
    release({ key }) {
      held.get(key)();
      held.delete(key);
    },
    peek: ({ key }) => write({ peeked: client.cache.peek(key)?.value ?? null }),
    async write_store({ store, text }) {
      const kept = makeStore(store);
      await kept.save(text);
      await kept.close?.();
      write({ written: true });
    },
    offline: () => globalThis.dispatchEvent(new Event("offline")),
    clear: () => client.clear().then(() => write({ cleared: true })),
    close: () => client.close().then(() => write({ closed: true })),
  };

  /** Let the first `times` writes fail, as on a full disk. */
  function failing(store, times) {
    const save = store.save.bind(store);
    store.save = (text) => {
      if (times > 0) {
        times -= 1;
        throw new Error("No space left on device");
      }
      return save(text);
    };
  }

  async function iterate(events) {
    try {
      for await (const one of events) {
        if (one.kind === "resync") write({ resync: one.reason });
        else write({ event: one.type, fields: one.fields, id: one.id });
      }
    } catch (error) {
      write({ ended: error.code, name: error.name });
    }
  }

  return async (command) => {
    try {
      await commands[command.do](command);
    } catch (error) {
      write({ failed: `${error.name}: ${error.message}`, doing: command.do });
    }
  };
}
