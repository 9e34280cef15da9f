// The real server as a process, for tests: `tellback serve` of the Python that TELLBACK_PYTHON names.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { connect } from "../dist/tellback.js";

export class Server {
  data = mkdtempSync(join(tmpdir(), "tellback-js-"));
  port = 0;

  async start() {
    const python = process.env.TELLBACK_PYTHON ?? "python3";
    this.process = spawn(python, ["-m", "tellback_server", "serve", "--data", join(this.data, "data"), "--port", String(this.port)],
      { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await Promise.race([
      new Promise((resolve) => createInterface(this.process.stdout).once("line", (text) => resolve([text]))),
      new Promise((_, reject) => this.process.once("exit", (code) => reject(new Error(`the server ended with ${code}`)))),
    ]);
    this.url = line;
    this.port = Number(new URL(line).port);
    return this;
  }

  async kill() {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill("SIGKILL");
    await ended;
  }

  async end() {
    await this.kill();
    rmSync(this.data, { recursive: true, force: true });
  }
}

export const client = (server, options = {}) => connect(server.url, { WebSocket, outbox: null, ...options });

/** Wait until `holds` does; fail after ten seconds. */
export async function until(holds, what = String(holds)) {
  for (const end = performance.now() + 10_000; ; ) {
    const found = await holds();
    if (found) return found;
    if (performance.now() > end) throw new Error(`never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** A WebSocket for one client, and when that client hears nothing: from the first frame on that `isFirst`. What comes meanwhile is in `held`. */
export function holding() {
  const held = [];
  let isHeld;
  let isFirst = () => false;
  class Holding extends WebSocket {
    emit(name, ...given) {
      if (name !== "message" || !(isHeld ||= isFirst(JSON.parse(String(given[0]))))) return super.emit(name, ...given);
      return held.push({ frame: JSON.parse(String(given[0])), hear: () => super.emit(name, ...given) }) > 0;
    }
  }
  return {
    WebSocket: Holding,
    held,
    hold: (first = () => true) => (isFirst = first),
    hear: () => {
      isHeld = false;
      isFirst = () => false;
      for (const { hear } of held.splice(0)) hear();
    },
  };
}

/** Web Locks of one process: what a browser gives the tabs of a profile. */
export class Locks {
  held = new Map();

  async request(name, options, act) {
    if (!act) [options, act] = [{}, options];
    while (this.held.has(name)) await this.held.get(name).catch(() => {});
    if (options.signal?.aborted) throw new Error("aborted");
    const run = Promise.resolve().then(() => act({ name }));
    this.held.set(name, run);
    try {
      return await run;
    } finally {
      this.held.delete(name);
    }
  }
}
