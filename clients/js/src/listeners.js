// Listeners by kind. Not every runtime has EventTarget.

/** Listeners by kind. */
export class Listeners {
  /** @type {Map<string, Set<(payload: any) => void>>} */
  #byName = new Map();

  /**
   * @param {string} name
   * @param {(payload: any) => void} listener
   */
  add(name, listener) {
    this.#byName.set(name, (this.#byName.get(name) ?? new Set()).add(listener));
  }

  /**
   * @param {string} name
   * @param {(payload: any) => void} listener
   */
  remove(name, listener) {
    this.#byName.get(name)?.delete(listener);
  }

  /**
   * Return whether there is a listener of this kind.
   * @param {string} name
   */
  has(name) {
    return (this.#byName.get(name)?.size ?? 0) > 0;
  }

  /**
   * @param {string} name
   * @param {unknown} payload
   */
  tell(name, payload) {
    for (const listener of [...(this.#byName.get(name) ?? [])]) carefully(() => listener(payload));
  }
}

/**
 * Call a listener. An exception does not stop the client, and surfaces as an uncaught error.
 * @param {() => void} call
 */
export function carefully(call) {
  try {
    call();
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
}
