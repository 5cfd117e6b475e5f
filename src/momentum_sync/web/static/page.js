// What both pages share: who looks at them, how the connection stands, and elements.

import { Client, LocalStore } from "./sdk/index.js";

const STATUS = { live: "live", catching_up: "catching up …", offline: "offline", ended: "ended" };
const WORDS = { Rising: "Rising", Steady: "Steady", NeedsCare: "Needs care" };
const SIGNS = { Rising: "▲", Steady: "●", NeedsCare: "▼" };

export const find = (id) => document.getElementById(id);

/** A state in words. */
export const words = (state) => WORDS[state] ?? "No data yet";

/** What stands behind `#` in the page's address, which browsers send to nobody. */
export function fromAddress() {
  return new URLSearchParams(location.hash.slice(1));
}

/** An element with children: texts, or elements. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A state as a mark that needs no colour to be told from another. */
export function badge(state) {
  const sign = element("span", { "aria-hidden": "true" }, SIGNS[state] ?? "○");
  return element("span", { class: "badge", "data-momentum": state ?? "" }, sign, ` ${words(state)}`);
}

/**
 * Puts children in an element only where they differ from what is there; the button that has the focus keeps it, and
 * what was unfolded stays so.
 */
export function fill(target, ...children) {
  const beside = document.createElement("div");
  beside.append(...children);
  if (target.innerHTML.replace("<details open=\"\">", "<details>") === beside.innerHTML) return;
  const key = target.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const unfolded = target.querySelector("details[open]") !== null;
  target.replaceChildren(...beside.childNodes);
  if (unfolded) target.querySelector("details")?.setAttribute("open", "");
  if (key !== undefined) target.querySelector(`[data-key="${key}"]`)?.focus();
}

/** The items of a list, or else a word where there is none. */
export const lines = (items, otherwise) => (items.length > 0 ? items : [element("li", { class: "soft" }, otherwise)]);

/**
 * A client for whoever the address, or else a form, says that it is; and a function that asks the server over HTTP as
 * them. Without a token, the form is shown, and nothing else happens.
 */
export async function begin({ channels = [] } = {}) {
  const address = fromAddress();
  const token = address.get("access_token");
  if (token === null) {
    askForToken();
    return null;
  }
  const userId = address.get("user_id");
  const name = `momentum-sync:${location.pathname}:${userId ?? ""}`;
  const store = (await isFirst(name)) ? new LocalStore(name) : null;
  const client = new Client(location.origin, token, { channels, store, userId });
  client.addEventListener("state", (state) => showStatus(state));
  client.addEventListener("error", (error) => {
    find("problem").textContent = error.name === "ConnectionLost" ? "" : error.message;
  });
  showStatus(client.state);
  keepPages();
  return { client, address, ask: (path, body) => ask(path, body, token) };
}

async function ask(path, body, token) {
  const response = await fetch(path, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return answer.data;
}

/** Whether no other tab shows the same: what is kept is one tab's at a time. */
function isFirst(name) {
  return new Promise((resolve) => {
    void navigator.locks.request(name, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {}); // until the tab is closed
    });
  });
}

function askForToken() {
  find("sign-in").hidden = false;
  find("content").hidden = true;
  find("status").textContent = "not signed in";
  find("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    const address = fromAddress();
    address.set("access_token", find("token").value.trim());
    location.hash = String(address);
    location.reload();
  });
  find("token").focus();
}

function showStatus({ status, since }) {
  const at = since === null ? "" : new Date(since).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const stale = status === "offline" || status === "ended";
  find("status").dataset.state = status;
  find("status").textContent = STATUS[status] + (stale && at ? ` since ${at}` : "");
  find("notice").hidden = !stale;
  find("notice").textContent = at
    ? `What you see was so on ${at}. What you do now is kept, and sent when the connection is back.`
    : "There is no connection, and nothing is known yet.";
}

/** The page itself opens without a network, too. */
function keepPages() {
  navigator.serviceWorker?.register("sw.js").catch((error) => {
    find("problem").textContent = `This page will not open without a network: ${error.message}`;
  });
}
