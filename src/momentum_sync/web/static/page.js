// What both pages share: who looks at them, how the connection stands, and elements.

import { subject } from "./sdk/connection.js";
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
 * Puts children in an element where they differ from what is there. What has the focus keeps it, what was unfolded or
 * scrolled stays so: they are known again by `data-key`.
 */
export function fill(target, ...children) {
  const beside = document.createElement("div");
  beside.append(...children);
  if (target.innerHTML.replaceAll('<details open="">', "<details>") === beside.innerHTML) return;
  const focused = target.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const unfolded = target.querySelector("details[open]") !== null;
  const scrolled = target.querySelector(".scroll")?.scrollTop ?? 0;
  target.replaceChildren(...beside.childNodes);
  if (unfolded) target.querySelector("details")?.setAttribute("open", "");
  if (scrolled > 0) target.querySelector(".scroll")?.scrollTo({ top: scrolled });
  if (focused !== undefined) focus(focused);
}

/** Focuses what has this key, wherever it is by now. */
export const focus = (key) => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();

/** Writes a text only where it is another: what is live is read aloud each time it is written. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** What draws, at most once a frame, whatever comes meanwhile. */
export function onceAFrame(draw) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      draw();
    });
  };
}

/** The items of a list, or else a word where there is none. */
export const lines = (items, otherwise) => (items.length > 0 ? items : [element("li", { class: "soft" }, otherwise)]);

/**
 * A client for whoever the address, or else a form, says that it is; and a function that asks the server over HTTP as
 * them. Without a token, the form is shown, and nothing else happens.
 */
export async function begin({ channels = [] } = {}) {
  const address = fromAddress();
  addEventListener("hashchange", () => location.reload()); // it is somebody else's now
  const token = address.get("access_token");
  if (token === null) {
    askForToken();
    return null;
  }
  const userId = address.get("user_id");
  // What is kept is kept for whose token it is, and for whose data: nobody else may find it.
  const holder = subject(token);
  const name = `momentum-sync:${location.pathname}:${holder}:${userId ?? holder}`;
  const store = holder !== null && (await isFirst(name)) ? new LocalStore(name) : null;
  const client = new Client(location.origin, token, { channels, store, userId });
  client.addEventListener("state", (state) => {
    showStatus(state, store !== null);
    if (state.status === "live") problem("");
  });
  client.addEventListener("error", (error) => {
    if (error.name !== "ConnectionLost" && error.name !== "FeedFrozen") problem(error.message);
  });
  showStatus(client.state, store !== null);
  keepPages();
  return { client, address, ask: (path, body) => ask(path, body, token) };
}

/** Says what is wrong; nothing, once it is mended. */
export function problem(text) {
  write(find("problem"), text);
}

/** Whether no other tab shows the same: what is kept is one tab's at a time. */
function isFirst(name) {
  return new Promise((resolve) => {
    if (!navigator.locks) {
      resolve(true); // as over plain HTTP, where nobody can tell
      return;
    }
    void navigator.locks.request(name, { ifAvailable: true }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise(() => {}); // until the tab is closed
    });
  });
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

function showStatus({ status, since }, isKept) {
  const at = since === null ? "" : new Date(since).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const stale = status === "offline" || status === "ended";
  find("status").dataset.state = status;
  write(find("status"), STATUS[status] + (stale && at ? ` since ${at}` : ""));
  find("notice").hidden = !stale;
  const seen = at ? `What you see was so on ${at}.` : "There is no connection, and nothing is known yet.";
  const done = isKept && status === "offline" && at ? " What you do now is kept, and sent when the connection is back." : "";
  write(find("notice"), seen + done);
}

/** The page itself opens without a network, too. */
function keepPages() {
  navigator.serviceWorker?.register("sw.js").catch((error) => {
    problem(`This page will not open without a network: ${error.message}`);
  });
}
