// What the program has done and the server does not know yet: kept in order, sent a few at a time, each once.

const AT_ONCE = 10;

/** Notifications that were marked as read, until the server has said so. */
export class Outbox {
  /** @type {Set<string>} */
  #waiting = new Set();
  /** @type {Set<string>} */
  #underWay = new Set();

  /** What the server has not answered, in the order in which it was done. */
  get waiting() {
    return [...this.#waiting];
  }

  /** @param {string} id */
  has(id) {
    return this.#waiting.has(id);
  }

  /**
   * Done now; what waits already waits on.
   * @param {string} id
   */
  add(id) {
    this.#waiting.add(id);
  }

  /** What is to be sent now, and then is under way until it is `done` or the connection `lost`. */
  take() {
    const free = Math.max(0, AT_ONCE - this.#underWay.size);
    const taken = this.waiting.filter((id) => !this.#underWay.has(id)).slice(0, free);
    for (const id of taken) this.#underWay.add(id);
    return taken;
  }

  /**
   * The server has answered, and will not say otherwise.
   * @param {string} id
   */
  done(id) {
    this.#waiting.delete(id);
    this.#underWay.delete(id);
  }

  /**
   * The server could not do it now.
   * @param {string} id
   */
  later(id) {
    this.#underWay.delete(id);
  }

  /** Nobody knows what became of what was under way: it is sent again, which changes nothing if it had been. */
  lost() {
    this.#underWay.clear();
  }

  /**
   * What a store had kept.
   * @param {string[]} waiting
   */
  restore(waiting) {
    for (const id of waiting) this.add(id);
  }
}
