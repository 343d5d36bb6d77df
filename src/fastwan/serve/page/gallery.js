// The videos that the server keeps, newest first.

import { json } from "./api.js";
import { clock, element, facts, isFinal, stateOf } from "./words.js";

const PAGE = 12;
const AGAIN_MS = 3000;

export class Gallery {
  #list;
  #more;
  #none;
  #player;
  #videos = new Map();
  #cards = new Map();
  #current = null;
  #seen;

  constructor({ list, more, none }, player) {
    [this.#list, this.#more, this.#none, this.#player] = [list, more, none, player];
    // A picture is loaded when its card comes into sight.
    this.#seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.#picture(entry.target);
    });
    more.addEventListener("click", () => this.#older());
    setInterval(() => this.#refresh(), AGAIN_MS);
  }

  get(id) {
    return this.#videos.get(id);
  }

  get all() {
    return [...this.#videos.values()].sort((a, b) => b.order - a.order);
  }

  async load() {
    this.#take(await json(`v1/videos?limit=${PAGE}`));
  }

  async #older() {
    const oldest = this.all.at(-1);
    this.#take(await json(`v1/videos?limit=${PAGE}&after=${oldest.id}`));
  }

  #take(page) {
    for (const video of page.data) this.put(video, { behind: true });
    this.#more.hidden = !page.has_more;
  }

  // Looks after those that are not finished, which nobody else follows.
  async #refresh() {
    const open = this.all.filter((video) => !isFinal(video) && video.id !== this.#current);
    for (const { id } of open) {
      try {
        this.put(await json(`v1/videos/${id}`));
      } catch (error) {
        if (error.status === 404) this.drop(id);
      }
    }
  }

  put(video, { behind = false } = {}) {
    const before = this.#videos.get(video.id);
    const orders = this.all.map((each) => each.order);
    const order = behind ? Math.min(0, ...orders) - 1 : Math.max(0, ...orders) + 1;
    this.#videos.set(video.id, { ...video, order: before?.order ?? order });
    this.#draw(video, before === undefined && !behind);
    this.#none.hidden = true;
  }

  drop(id) {
    this.#videos.delete(id);
    this.#cards.get(id)?.remove();
    this.#cards.delete(id);
    this.#player.forget(id);
    this.#none.hidden = this.#videos.size > 0;
  }

  select(id) {
    this.#current = id;
    for (const [each, card] of this.#cards) {
      if (each === id) card.firstChild.setAttribute("aria-current", "true");
      else card.firstChild.removeAttribute("aria-current");
    }
  }

  #draw(video, first) {
    let card = this.#cards.get(video.id);
    if (!card) {
      card = element("li", { dataset: { id: video.id } });
      this.#cards.set(video.id, card);
      if (first) this.#list.prepend(card);
      else this.#list.append(card);
    }
    const picture = card.querySelector("video") ?? element("video", { muted: true, preload: "metadata" });
    picture.tabIndex = -1;
    picture.setAttribute("aria-hidden", "true");
    const [width, height] = video.size.split("x");
    const shown = element("div", { className: "picture" }, picture, element("span", {}, stateOf(video)));
    shown.style.aspectRatio = `${width} / ${height}`;
    shown.dataset.state = video.status;
    const meta = [`seed ${video.seed}`, facts(video).made, clock(video.created_at)].filter(Boolean);
    card.replaceChildren(
      element(
        "a",
        { href: `#${video.id}` },
        shown,
        element("p", { className: "prompt" }, video.prompt),
        element("p", { className: "quiet" }, meta.join(" · ")),
      ),
    );
    if (video.id === this.#current) card.firstChild.setAttribute("aria-current", "true");
    if (video.status === "completed" && !picture.src) this.#seen.observe(card);
  }

  async #picture(card) {
    this.#seen.unobserve(card);
    try {
      card.querySelector("video").src = `${await this.#player.address(card.dataset.id)}#t=0.001`;
    } catch {
      // It made room for others; the card keeps its words.
    }
  }
}
