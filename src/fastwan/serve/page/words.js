// How the page says things.

export const isFinal = (video) => !["queued", "in_progress"].includes(video.status);

export function stateOf(video) {
  switch (video.status) {
    case "queued":
      return "Waiting";
    case "in_progress":
      return video.step ? `Step ${video.step} of ${video.steps}` : "Being made";
    case "failed":
      return "Failed";
    case "cancelled":
      return "Cancelled";
    default:
      return "";
  }
}

export function placeOf(place) {
  if (place === 0) return "Waiting: it is next";
  return `Waiting: ${place} ${place === 1 ? "video" : "videos"} before this one`;
}

export function seconds(value) {
  if (value === undefined) return "";
  return value < 10 ? `${value.toFixed(value < 1 ? 2 : 1)} s` : `${Math.round(value)} s`;
}

// What a finished video took, in words.
export function facts(video) {
  const { total, first_frame: first, queue } = video.timings ?? {};
  // A moment in the queue is nothing to tell of.
  return { made: seconds(total), first: seconds(first), waited: queue >= 0.5 ? seconds(queue) : "" };
}

export function lengthOf(frames, fps) {
  return `${(frames / fps).toFixed(1)} s`;
}

export function clock(unix) {
  const moment = new Date(1000 * unix);
  const today = new Date().toDateString() === moment.toDateString();
  const time = { hour: "2-digit", minute: "2-digit" };
  return moment.toLocaleString([], today ? time : { day: "numeric", month: "short", ...time });
}

export function element(name, fields = {}, ...children) {
  const made = document.createElement(name);
  const { dataset = {}, ...others } = fields;
  Object.assign(made, others);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}
