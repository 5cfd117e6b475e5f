// Shared by both pages: sign-in, connection status, and elements.

import { subject } from "./sdk/connection.js";
import { Client, LocalStore } from "./sdk/index.js";

const STATUS = { live: "live", catching_up: "catching up …", offline: "offline", ended: "ended" };
const WORDS = { Rising: "Rising", Steady: "Steady", NeedsCare: "Needs care" };
const SIGNS = { Rising: "▲", Steady: "●", NeedsCare: "▼" };

export const find = (id) => document.getElementById(id);

/** A state in words. */
export const words = (state) => WORDS[state] ?? "No data yet";

const NO_SERVER = "The server cannot be reached.";
const KEPT = `momentum:${location.pathname}`;

/**
 * The user of the page: the fragment of its URL, which browsers do not send. It leaves the address at
 * once, where it would be copied, bookmarked and kept in the history, and stays with the tab.
 */
function whoLooks() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("access_token")) {
    sessionStorage.setItem(KEPT, String(given));
    history.replaceState(null, "", location.pathname);
  }
  return new URLSearchParams(sessionStorage.getItem(KEPT) ?? "");
}

/** The claims of a token; nothing, where it cannot be read. */
function claims(token) {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (letter) => letter.charCodeAt(0))));
  } catch {
    return {};
  }
}

/** A day, and a day with a time, in the one form that the pages have for each. */
export const dayOf = (date) =>
  new Date(`${date}T00:00:00`).toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
const momentOf = (at) => new Date(at).toLocaleString([], { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });

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

/** A state as a mark that is distinguishable without colour. */
export function badge(state) {
  const sign = element("span", { "aria-hidden": "true" }, SIGNS[state] ?? "○");
  return element("span", { class: "badge", "data-momentum": state ?? "" }, sign, ` ${words(state)}`);
}

/** A node's HTML as it was made: a reader's unfolded details do not count. */
const htmlOf = (node) => (node.outerHTML ?? node.data).replaceAll('<details open="">', "<details>");

/**
 * Updates the children of an element where they differ. A child that stays the same stays in the page: a click that
 * began before an event arrived still reaches it. Focus, unfolded details and scroll positions are kept: elements are
 * matched by `data-key`.
 */
export function fill(target, ...children) {
  const beside = document.createElement("div");
  beside.append(...children);
  const before = Map.groupBy(target.childNodes, htmlOf);
  const wanted = [...beside.childNodes].map((node) => before.get(htmlOf(node))?.shift() ?? node);
  const focused = target.contains(document.activeElement) ? document.activeElement : null;
  const unfolded = target.querySelector("details[open]") !== null;
  const scrolled = target.querySelector(".scroll")?.scrollTop ?? 0;
  for (const node of [...before.values()].flat()) node.remove();
  let next = target.firstChild;
  for (const node of wanted) {
    if (node === next) next = node.nextSibling;
    else target.insertBefore(node, next);
  }
  if (unfolded) target.querySelector("details")?.setAttribute("open", "");
  if (scrolled > 0) target.querySelector(".scroll")?.scrollTo({ top: scrolled });
  if (focused !== null && document.activeElement !== focused && focused.dataset.key !== undefined) focus(focused.dataset.key);
}

/** Focuses the element with this key, wherever it is now. */
export const focus = (key) => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();

/** Writes a text only where it is another: screen readers read a live region each time it is written. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Draws at most once a frame. */
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
 * Returns a client for the user of the URL or of the form, and a function that sends HTTP requests as that user. Without
 * a token, or with one that this page does not accept, the form is shown, and nothing else happens.
 * @param {{channels?: string[], roles?: string[] | null}} [options] the roles that the page is for; null: any
 */
export async function begin({ channels = [], roles = null } = {}) {
  addEventListener("hashchange", () => location.reload()); // it is somebody else's now
  keepPages();
  const address = whoLooks();
  const token = address.get("access_token");
  if (token === null) {
    signIn("not signed in");
    return null;
  }
  const { role, app_metadata: { role: appRole } = {} } = claims(token);
  if (roles !== null && role !== undefined && role !== "service_role" && !roles.includes(appRole)) {
    signOut(`This page requires the role ${roles.join(" or ")}, but the token has neither. Sign in with another token.`);
    return null;
  }
  const userId = address.get("user_id");
  // Data is stored per token subject and user, so that no other user finds it.
  const holder = subject(token);
  const name = `momentum-sync:${location.pathname}:${holder}:${userId ?? holder}`;
  const store = holder !== null && (await isFirst(name)) ? new LocalStore(name) : null;
  const client = new Client(location.origin, token, { channels, store, userId });
  let isOut = false;
  client.addEventListener("state", (state) => {
    if (isOut) return;
    showStatus(state, store !== null);
    if (state.status === "live") problem("");
  });
  client.addEventListener("error", (error) => {
    if (error.name === "Rejected" && error.status === 401) {
      isOut = true;
      void client.close();
      signOut(error.code === "token_expired" ? "You are signed out: the token has expired." : "You are signed out: the server rejected the token.");
    } else if (error.name === "StoreFailed") problem("This browser cannot store data for offline use: its storage is full or disabled.");
    else if (error.name === "RequestFailed" || error.name === "Rejected" || error.name === "Ended") problem(error.message);
  });
  showStatus(client.state, store !== null);
  return { client, ask: (path, body) => ask(path, body, token) };
}

/** Display names from the database's function; requested for unknown people only. */
export class Names {
  #ask;
  #told;
  #known = new Map();

  /** `told` is called when there are names that were not there before. */
  constructor(ask, told) {
    this.#ask = ask;
    this.#told = told;
  }

  of(id) {
    return this.#known.get(id) || id.slice(0, 8);
  }

  async want(ids) {
    const missing = ids.filter((id) => !this.#known.has(id)).slice(0, 500);
    if (missing.length === 0) return;
    for (const id of missing) this.#known.set(id, null);
    try {
      for (const [id, name] of Object.entries(await this.#ask("/sync/names", { user_ids: missing }))) this.#known.set(id, name);
      this.#told();
    } catch {
      for (const id of missing) this.#known.delete(id); // the ids stand in until the next time
    }
  }

  /** For a page that opens without a network. */
  get saved() {
    return Object.fromEntries([...this.#known].filter(([, name]) => name !== null));
  }

  restore(saved) {
    for (const [id, name] of Object.entries(saved ?? {})) this.#known.set(id, name);
  }
}

/** Shows an error; nothing, once it is mended. A final error stays. */
export function problem(text) {
  if (find("sign-in").hidden) write(find("problem"), text);
}

/** Whether no other tab shows the same: the store belongs to one tab at a time. */
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
  let response;
  let answer;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    answer = await response.json();
  } catch {
    throw new Error(NO_SERVER); // what browsers say of it is not for people
  }
  if (!response.ok) throw new Error(answer.error?.message ?? NO_SERVER);
  return answer.data;
}

/** Shows the form, and nothing of anybody's. */
function signIn(status) {
  find("sign-in").hidden = false;
  find("content").hidden = true;
  find("notice").hidden = true;
  find("status").dataset.state = "";
  write(find("status"), status);
  find("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEPT, String(new URLSearchParams({ access_token: find("token").value.trim() })));
    location.reload();
  });
  find("token").focus();
}

function signOut(why) {
  sessionStorage.removeItem(KEPT);
  problem(why);
  signIn("signed out");
}

function showStatus({ status, since }, isKept) {
  const at = since === null ? "" : momentOf(since);
  const stale = status === "offline" || status === "ended";
  find("status").dataset.state = status;
  write(find("status"), STATUS[status] + (stale && at ? ` since ${at}` : ""));
  find("notice").hidden = !stale;
  const seen = at ? `Shown as of ${at}.` : "There is no connection, and no data has been loaded yet.";
  const done = isKept && status === "offline" && at ? " Your changes are stored and sent when the connection is back." : "";
  write(find("notice"), seen + done);
}

/** The page itself opens without a network, too, from the first visit on. */
function keepPages() {
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // it opens without a network or does not: as on plain HTTP
}
