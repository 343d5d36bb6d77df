// A video in its element: as it is made, or the finished file.

import { fetchFrom, hasToken } from "./api.js";

const Source = window.ManagedMediaSource ?? window.MediaSource;

export class Player {
  #video;
  #live = null;
  #loads = new Map();

  constructor(video) {
    this.#video = video;
  }

  // Plays a video while it is made. False where there is none to play live: the file will do.
  async live(id, signal, begun) {
    const answer = await fetchFrom(`v1/videos/${id}/stream`, { signal });
    const type = answer.headers.get("content-type") ?? "";
    if (!type.includes("codecs=") || !Source?.isTypeSupported(type)) {
      await answer.body.cancel();
      return false;
    }
    const source = new Source();
    this.#video.disableRemotePlayback = true; // or a ManagedMediaSource does not open
    const address = URL.createObjectURL(source);
    this.#show(address);
    this.#live = address;
    await once(source, "sourceopen", signal);
    const buffer = source.addSourceBuffer(type);
    begun();
    this.#video.play().catch(() => {}); // where it may not, its controls are there
    const reader = answer.body.getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      buffer.appendBuffer(value);
      await once(buffer, "updateend", signal);
    }
    if (source.readyState === "open") source.endOfStream();
    return true;
  }

  // Shows the finished file.
  async file(id, { play = false } = {}) {
    this.#show(await this.address(id));
    if (play) this.#video.play().catch(() => {});
  }

  // Address of a finished file. An element cannot send a token, so that with one it is loaded here.
  async address(id) {
    if (!hasToken()) return `v1/videos/${id}/content`;
    if (!this.#loads.has(id)) {
      const load = fetchFrom(`v1/videos/${id}/content`)
        .then((answer) => answer.blob())
        .then((blob) => URL.createObjectURL(blob));
      load.catch(() => this.#loads.delete(id));
      this.#loads.set(id, load);
    }
    return this.#loads.get(id);
  }

  clear() {
    this.#release();
    this.#video.removeAttribute("src");
    this.#video.load();
    this.#video.hidden = true;
  }

  // Gives the memory of a file back that is shown nowhere any more.
  async forget(id) {
    const load = this.#loads.get(id);
    this.#loads.delete(id);
    if (load) URL.revokeObjectURL(await load);
  }

  #show(address) {
    this.#release();
    this.#video.src = address;
    this.#video.hidden = false;
  }

  #release() {
    if (this.#live !== null) URL.revokeObjectURL(this.#live);
    this.#live = null;
  }
}

function once(target, name, signal) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", () => reject(new Error("cannot be played")), { once: true });
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
