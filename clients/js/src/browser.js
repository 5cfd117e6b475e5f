// Events of the browser's network and page. Other runtimes have none, so programs there call `reconnectNow`.

/**
 * Listen to the browser. Returns a function that stops.
 * @param {() => void} wake the network is back, or the page is looked at again
 * @param {() => void} leave the page may be gone in a moment
 * @param {() => void} offline there is no network
 * @returns {() => void}
 */
export function listenToBrowser(wake, leave, offline) {
  /** @type {(() => void)[]} */
  const untie = [];
  /**
   * @param {any} target
   * @param {string} name
   * @param {() => void} listener
   */
  const on = (target, name, listener) => {
    if (typeof target?.addEventListener !== "function") return;
    target.addEventListener(name, listener);
    untie.push(() => target.removeEventListener(name, listener));
  };
  const { document, window } = /** @type {any} */ (globalThis);
  on(window, "online", wake);
  on(window, "offline", offline);
  on(window, "pageshow", wake);
  on(window, "pagehide", leave);
  on(document, "visibilitychange", () => (document.visibilityState === "visible" ? wake() : leave()));
  return () => {
    for (const one of untie) one();
  };
}
