// Whoever wants to be told. EventTarget is not in every runtime.

/** Listeners by the name of what they are told of. */
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
   * Whether anybody wants to be told of this.
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
 * Calls what is the program's. What it throws is no reason not to go on, and surfaces where uncaught errors do.
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
