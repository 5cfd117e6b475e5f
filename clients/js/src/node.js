// For Node: a store in a file.

import { randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

const ATTEMPTS = 3;

/**
 * A store in a file, replaced as a whole. Only its owner can read it: what is in it is a user's.
 *
 * It is one program's at a time. A second one is told so: each of them would put its own place in the other's place.
 */
export class FileStore {
  #path;
  #held = false;

  /**
   * @param {string} path
   */
  constructor(path) {
    this.#path = path;
  }

  async load() {
    await this.#take();
    return readIfThere(this.#path);
  }

  /** @param {string} text */
  async save(text) {
    await this.#take();
    const beside = this.#beside(randomBytes(6).toString("hex"));
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

  /** Lets go of it, so that another program may have it. */
  async close() {
    if (!this.#held) return;
    this.#held = false;
    await unlink(this.#beside("lock"));
  }

  /** Holds a file beside it that names this process; that of a process which is gone is taken over. */
  async #take() {
    if (this.#held) return;
    await mkdir(dirname(this.#path), { recursive: true });
    for (let attempt = 1; ; attempt += 1) {
      try {
        const file = await open(this.#beside("lock"), "wx", 0o600);
        await file.writeFile(String(process.pid));
        await file.close();
        this.#held = true;
        return;
      } catch (error) {
        if (/** @type {NodeJS.ErrnoException} */ (error).code !== "EEXIST") throw error;
      }
      const holder = Number(await readIfThere(this.#beside("lock")));
      if (attempt === ATTEMPTS || (holder > 0 && isAlive(holder))) {
        throw new Error(`process ${holder} uses ${this.#path}; give each program a file of its own`);
      }
      await unlink(this.#beside("lock")).catch(() => {});
    }
  }

  /** @param {string} what */
  #beside(what) {
    return join(dirname(this.#path), `.${basename(this.#path)}.${what}`);
  }
}

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
