// A WebSocket to the server that comes back by itself. Every open begins with a snapshot.

const PATH = "/functions/v1/realtime-momentum-sync";
const LONGEST_PAUSE_MS = 10_000;
const PING_EVERY_MS = 2_000;
// Close codes after which the same request would end the same way.
const FINAL = new Set([1009, 4400, 4401, 4403, 4410, 4413]);

/**
 * Connects and hands every message to `on[type]`.
 * `query` is the connection's own: user_id, channels. `status` hears of `connecting`, `live`, `lost` or `closed`,
 * and why. `roundTrip` hears the milliseconds between a ping and its pong.
 */
export function connect({ token, query, on, status, roundTrip }) {
  const address = new URL(PATH, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.hash = "";
  address.search = new URLSearchParams({ client_id: crypto.randomUUID(), ...query });
  let failures = 0;

  function open() {
    status("connecting", "");
    const socket = new WebSocket(address, ["momentum.v1", `bearer.${token}`]);
    let pinged = 0;
    const pinging = setInterval(() => {
      if (socket.readyState === WebSocket.OPEN) {
        pinged = performance.now();
        socket.send('{"type":"ping"}');
      }
    }, PING_EVERY_MS);

    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "subscription_confirmed") {
        failures = 0;
        status("live", "");
      } else if (message.type === "pong") {
        roundTrip(performance.now() - pinged);
      } else if (message.type === "cache_invalidation") {
        socket.send(JSON.stringify({ type: "cache_invalidation_ack", cache_keys: message.cache_keys }));
      }
      on[message.type]?.(message, socket);
    };

    socket.onclose = ({ code, reason }) => {
      clearInterval(pinging);
      if (FINAL.has(code)) {
        status("closed", reason);
        return;
      }
      failures += 1;
      const pause = Math.min(LONGEST_PAUSE_MS, 250 * 2 ** failures) * (0.5 + Math.random() / 2);
      status("lost", reason);
      setTimeout(open, pause);
    };
  }

  open();
}

/** Shows the connection's status in the element `#status`. */
export function showStatus(state, why) {
  const words = { connecting: "connecting …", live: "live", lost: "connection lost, coming back …", closed: "closed" };
  const element = document.querySelector("#status");
  element.dataset.state = state;
  element.textContent = why ? `${words[state]} (${why})` : words[state];
}

/** What stands behind `#` in the page's address. */
export function fromAddress() {
  return new URLSearchParams(location.hash.slice(1));
}

/** An element with text in it. */
export function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
