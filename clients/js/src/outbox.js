// What the program has done and the server does not know yet: kept in order, sent a few at a time, each once.

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

  /** What the server has not answered, in the order in which it was done. */
  get waiting() {
    return [...this.#waiting];
  }

  /** @param {string} id */
  has(id) {
    return this.#waiting.has(id);
  }

  /**
   * Done now; what waits already waits on. Throws TypeError if it is no UUID.
   * @param {string} id
   */
  add(id) {
    const plain = String(id).toLowerCase();
    if (!UUID.test(plain)) throw new TypeError(`${id} is not the id of a notification.`);
    this.#waiting.add(plain);
  }

  /**
   * What is to be sent now, and then is under way until it is `done` or the connection `lost`. No more than ten a second.
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
   * What a store had kept, before what was added since.
   * @param {string[]} waiting
   */
  restore(waiting) {
    this.#waiting = new Set([...waiting.filter((id) => UUID.test(id)), ...this.#waiting]);
  }
}
