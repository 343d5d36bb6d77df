// What is asked for, what is followed, and what keys do.

import { fetchFrom, follow, json, keepToken } from "./api.js";
import { Gallery } from "./gallery.js";
import { Player } from "./player.js";
import { Stage } from "./stage.js";
import { element, isFinal, lengthOf } from "./words.js";

const $ = (id) => document.getElementById(id);

const player = new Player($("video"));
const stage = new Stage(
  Object.fromEntries(
    ["screen", "empty", "shimmer", "progress", "status", "frames", "about", "caption", "facts", "download"]
      .map((id) => [id, $(id)]),
  ),
  player,
);
const gallery = new Gallery({ list: $("gallery"), more: $("more"), none: $("none") }, player);

let model = null;
let shown = null; // the video on the stage
let leave = new AbortController(); // ends what follows it

function tellError(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) return ask();
  $("error").textContent = error.message;
}

// Does what the user asked for, and says in words what went wrong.
async function attempt(work) {
  $("error").textContent = "";
  try {
    return await work();
  } catch (error) {
    tellError(error);
  }
}

async function start() {
  model = (await json("v1/models")).data[0];
  $("model").textContent = `${model.id} on ${model.device}`;
  $("shape").replaceChildren(
    ...model.sizes.map((size, index) =>
      element(
        "option",
        { value: index },
        `${size.replace("x", " × ")}, ${lengthOf(model.num_frames[index], model.fps)}`,
      ),
    ),
  );
  $("sampler").replaceChildren(
    ...model.samplers.map((name) => element("option", { value: name }, name)),
  );
  $("sampler-field").hidden = model.samplers.length < 2;
  await gallery.load();
  const asked = location.hash.slice(1);
  const newest = gallery.all.find((video) => !isFinal(video)) ?? gallery.all[0];
  if (asked) await open(asked);
  else if (newest) await open(newest.id);
}

// Puts a video on the stage, and follows it to its end.
async function open(id) {
  if (id === shown?.id) return;
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  history.replaceState(null, "", `#${id}`);
  try {
    const video = gallery.get(id) ?? (await json(`v1/videos/${id}`, { signal }));
    gallery.select(id);
    shown = video;
    stage.open(video);
    $("cancel").hidden = isFinal(video);
    if (isFinal(video)) await end(video, false);
    else await watch(video, signal);
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 404) close();
    tellError(error);
  }
}

function close() {
  leave.abort();
  shown = null;
  history.replaceState(null, "", location.pathname);
  gallery.select(null);
  stage.open(null);
  $("cancel").hidden = true;
}

async function watch(video, signal) {
  const live = player.live(video.id, signal, () => stage.playing()).catch(() => false);
  let last = null;
  await follow(
    video.id,
    (name, data) => {
      if (["done", "failed", "cancelled", "deleted"].includes(name)) last = [name, data];
      else stage.tell(name, data);
      if (["started", "step"].includes(name)) {
        gallery.put({ ...video, status: "in_progress", step: data.step });
      }
    },
    (lost) => lost && stage.say("The connection broke. Trying again"),
    signal,
  );
  if (signal.aborted || last === null) return;
  const [name, data] = last;
  if (name === "deleted") {
    gallery.drop(video.id);
    return close();
  }
  gallery.put(data);
  await end(data, name === "done" && (await live));
}

// Shows a finished video; one that was played while it was made goes on.
async function end(video, played) {
  shown = video;
  stage.end(video);
  $("cancel").hidden = true;
  if (video.status !== "completed") return player.clear();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!played) await player.file(video.id, { play: !still });
  $("download").href = await player.address(video.id);
  $("download").download = `${video.id}.mp4`;
}

async function make() {
  const asked = new URLSearchParams({ prompt: $("prompt").value });
  const index = Number($("shape").value);
  asked.set("size", model.sizes[index]);
  asked.set("num_frames", model.num_frames[index]);
  asked.set("sampler", $("sampler").value);
  if ($("seed").value) asked.set("seed", $("seed").value);
  $("make").disabled = true;
  try {
    const video = await json("v1/videos", { method: "POST", body: asked });
    gallery.put(video);
    open(video.id);
    $("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  } finally {
    $("make").disabled = false;
  }
}

async function cancel() {
  if (shown === null || isFinal(shown)) return;
  stage.say("Cancelling");
  await fetchFrom(`v1/videos/${shown.id}/cancel`, { method: "POST" });
}

async function remove() {
  const { id } = shown;
  await fetchFrom(`v1/videos/${id}`, { method: "DELETE" });
  gallery.drop(id);
  close();
  $("prompt").focus();
}

function again() {
  $("prompt").value = shown.prompt;
  $("seed").value = shown.seed;
  $("sampler").value = shown.sampler;
  const index = model.sizes.findIndex(
    (size, each) => size === shown.size && model.num_frames[each] === shown.num_frames,
  );
  if (index >= 0) $("shape").value = index;
  $("prompt").focus();
}

function ask() {
  if (!$("ask").open) $("ask").showModal();
}

$("create").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(make);
});
$("cancel").addEventListener("click", () => attempt(cancel));
$("remove").addEventListener("click", () => attempt(remove));
$("again").addEventListener("click", again);
$("ask").addEventListener("cancel", (event) => event.preventDefault());
$("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepToken($("token").value.trim());
  try {
    await start();
    $("ask").close();
    $("prompt").focus();
  } catch (error) {
    $("token-error").textContent = error.message;
  }
});
addEventListener("hashchange", () => attempt(() => open(location.hash.slice(1))));
addEventListener("keydown", (event) => {
  if (event.isComposing) return; // the keys are an input method's
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("create").requestSubmit();
  } else if (event.key === "Escape" && !$("ask").open) {
    attempt(cancel);
  }
});

attempt(start);
