// For Node: a store in a file.

import { randomBytes } from "node:crypto";
import { link, mkdir, open, readFile, rename, unlink, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";

const ATTEMPTS = 5;
/** Files that this process holds: a lock that names it and is not among them is of an earlier one with its number. */
const held = new Set();

/**
 * A file that is replaced as a whole, and readable by its owner only.
 *
 * One program uses it at a time; a second one gets an error, because each would overwrite the other's position.
 */
export class FileStore {
  #path;
  /** @type {Promise<void> | null} */
  #taking = null;
  #closed = false;

  /**
   * @param {string} path
   */
  constructor(path) {
    this.#path = resolve(path);
  }

  async load() {
    await this.#take();
    return readIfThere(this.#path);
  }

  /** @param {string} text */
  async save(text) {
    await this.#take();
    const beside = this.#beside(unique());
    const file = await open(beside, "wx", 0o600); // made by us, and so readable by us alone
    try {
      await file.writeFile(text);
      await file.sync();
      await file.close();
      await rename(beside, this.#path);
    } catch (error) {
      await file.close().catch(() => {});
      await unlink(beside).catch(() => {});
      throw error;
    }
  }

  /** Release the file, so that another program may use it. The store cannot be used any more. */
  async close() {
    this.#closed = true;
    await this.#taking?.catch(() => {});
    if (this.#taking === null || !held.delete(this.#path)) return;
    await unlink(this.#beside("lock")).catch(() => {});
  }

  /** Holds a file beside it that names this process; once for all callers. */
  #take() {
    if (this.#closed) return Promise.reject(new Error(`${this.#path} was closed`));
    this.#taking ??= this.#lock().catch((error) => {
      this.#taking = null; // it is tried again
      throw error;
    });
    return this.#taking;
  }

  async #lock() {
    await mkdir(dirname(this.#path), { recursive: true });
    const mine = this.#beside(unique());
    await writeFile(mine, String(process.pid), { flag: "wx", mode: 0o600 });
    try {
      for (let attempt = 1; ; attempt += 1) {
        try {
          if (held.has(this.#path)) throw new Error(`this program uses ${this.#path} already; give each client a file of its own`);
          await link(mine, this.#beside("lock")); // at once and whole, or not at all
          held.add(this.#path);
          return;
        } catch (error) {
          if (/** @type {NodeJS.ErrnoException} */ (error).code !== "EEXIST") throw error;
        }
        const holder = Number(await readIfThere(this.#beside("lock")));
        if (attempt === ATTEMPTS || (holder > 0 && holder !== process.pid && isAlive(holder))) {
          throw new Error(`process ${holder} uses ${this.#path}; give each program a file of its own`);
        }
        await this.#breakLock(holder);
      }
    } finally {
      await unlink(mine).catch(() => {});
    }
  }

  /**
   * Remove the lock of a process that has ended; one that was created meanwhile is put back.
   * @param {number} holder
   */
  async #breakLock(holder) {
    const aside = this.#beside(unique());
    try {
      await rename(this.#beside("lock"), aside);
    } catch {
      return; // somebody else did
    }
    if (Number(await readIfThere(aside)) !== holder) await link(aside, this.#beside("lock")).catch(() => {});
    await unlink(aside).catch(() => {});
  }

  /** @param {string} what */
  #beside(what) {
    return join(dirname(this.#path), `.${basename(this.#path)}.${what}`);
  }
}

const unique = () => randomBytes(6).toString("hex");

/** @param {string} path */
async function readIfThere(path) {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (/** @type {NodeJS.ErrnoException} */ (error).code === "ENOENT") return null;
    throw error;
  }
}

/** @param {number} pid */
function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return /** @type {NodeJS.ErrnoException} */ (error).code === "EPERM";
  }
}
