// Changes that the server does not have yet: kept in order, sent a few at a time, each once.

const A_SECOND = 10; // servers take 20 messages a second
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** Notifications that were marked as read, until the server has said so. */
export class Outbox {
  /** @type {Set<string>} */
  #waiting = new Set();
  /** @type {Set<string>} */
  #underWay = new Set();
  #second = 0;
  #left = A_SECOND;

  /** Marks that the server has not answered, in order. */
  get waiting() {
    return [...this.#waiting];
  }

  /** @param {string} id */
  has(id) {
    return this.#waiting.has(id);
  }

  /**
   * Add a mark; one that waits already keeps its place. Throws TypeError if the id is not a UUID.
   * @param {string} id
   */
  add(id) {
    const plain = String(id).toLowerCase();
    if (!UUID.test(plain)) throw new TypeError(`${id} is not a notification id; it must be a UUID.`);
    this.#waiting.add(plain);
  }

  /**
   * Return marks to send now. They are under way until `done`, `later` or `lost`. At most ten per second are returned.
   * @param {number} now in milliseconds
   */
  take(now) {
    if (now - this.#second >= 1_000) {
      this.#second = now;
      this.#left = A_SECOND;
    }
    const taken = this.waiting.filter((id) => !this.#underWay.has(id)).slice(0, this.#left);
    this.#left -= taken.length;
    for (const id of taken) this.#underWay.add(id);
    return taken;
  }

  /**
   * Remove a mark that the server has confirmed or refused for good.
   * @param {string} id
   */
  done(id) {
    this.#waiting.delete(id);
    this.#underWay.delete(id);
  }

  /**
   * Return a mark to the queue, because the server could not handle it now.
   * @param {string} id
   */
  later(id) {
    this.#underWay.delete(id);
  }

  /** Return all marks under way to the queue. The server may have them; repeating is harmless. */
  lost() {
    this.#underWay.clear();
  }

  /**
   * Add the marks of a store, before those added since.
   * @param {string[]} waiting
   */
  restore(waiting) {
    this.#waiting = new Set([...waiting.filter((id) => UUID.test(id)), ...this.#waiting]);
  }
}
