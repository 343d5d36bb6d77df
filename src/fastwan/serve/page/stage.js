// The video that is looked at: its progress while it is made, and what it is afterwards.

import { element, facts, isFinal, lengthOf, placeOf } from "./words.js";

export class Stage {
  #parts;
  #player;
  #video = null;
  #invitation;

  constructor(parts, player) {
    this.#parts = parts;
    this.#player = player;
    this.#invitation = parts.empty.textContent;
  }

  // Begins to show another video, or none.
  open(video) {
    const { about, screen, empty, shimmer, progress } = this.#parts;
    this.#player.clear();
    this.#video = video;
    this.say("");
    this.count("");
    about.hidden = true;
    progress.hidden = true;
    shimmer.hidden = true;
    empty.hidden = video !== null;
    empty.textContent = this.#invitation;
    if (video === null) return;
    const [width, height] = video.size.split("x");
    screen.style.aspectRatio = `${width} / ${height}`;
    if (isFinal(video)) return;
    shimmer.hidden = false;
    progress.hidden = false;
    // One part a step, and one for the frames.
    progress.replaceChildren(...Array.from({ length: video.steps + 1 }, () => element("span")));
    progress.setAttribute("aria-valuemax", video.steps + 1);
    this.step(video.step ?? 0);
  }

  say(text) {
    const { status } = this.#parts;
    if (status.textContent !== text) status.textContent = text;
    document.title = text ? `${text} · FastWan` : "FastWan";
  }

  count(text) {
    this.#parts.frames.textContent = text;
  }

  step(done) {
    const { progress } = this.#parts;
    [...progress.children].forEach((part, index) => {
      part.style.setProperty("--done", index < done ? 1 : 0);
      part.classList.toggle("now", index === done);
    });
    progress.setAttribute("aria-valuenow", done);
    progress.setAttribute("aria-valuetext", `${done} of ${this.#video.steps} steps`);
  }

  // Takes an event of the job, and says what it means.
  tell(name, data) {
    switch (name) {
      case "queued":
        return this.say(placeOf(data.place));
      case "started":
        return this.say("Being made");
      case "step":
        this.step(data.step);
        return this.say(
          data.step < data.steps ? `Step ${data.step} of ${data.steps}` : "All steps are done",
        );
      case "first_frame":
        return this.say("The first frame is there");
      case "frames": {
        const part = this.#parts.progress.lastChild;
        part?.style.setProperty("--done", data.frames / data.num_frames);
        return this.count(`${data.frames} of ${data.num_frames} frames`);
      }
    }
  }

  // The first picture is on the screen.
  playing() {
    this.#parts.shimmer.hidden = true;
  }

  // Says how the video ended, and what it is.
  end(video) {
    const { progress, shimmer, about, caption, facts: list, download, empty } = this.#parts;
    this.#video = video;
    progress.hidden = true;
    shimmer.hidden = true;
    this.count("");
    const { made, first, waited } = facts(video);
    const said = {
      completed: `Made in ${made}`,
      failed: `It failed: ${video.error?.message}`,
      cancelled: "Cancelled",
    };
    this.say(said[video.status]);
    about.hidden = false;
    caption.textContent = video.prompt;
    const rows = [
      ["Seed", `${video.seed}`],
      ["Size", video.size.replace("x", " × ")],
      ["Length", lengthOf(video.num_frames, video.fps)],
      ["Sampler", `${video.sampler}, ${video.steps} steps`],
      ["First frame", first && `after ${first}`],
      ["Waited", waited],
    ];
    list.replaceChildren(
      ...rows
        .filter(([, value]) => value)
        .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
    const done = video.status === "completed";
    download.hidden = !done;
    empty.hidden = done;
    empty.textContent = "There is no video";
  }
}
