// The server's answers: JSON, errors in words, and events of a job.

const TOKEN = "fastwan-token";
const FINAL = new Set(["done", "failed", "cancelled", "deleted"]);
const AGAIN_MS = 1000;

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);

export async function fetchFrom(path, options = {}) {
  const headers = new Headers(options.headers);
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.set("authorization", `Bearer ${token}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?", 0);
  }
  if (!answer.ok) throw await inWords(answer);
  return answer;
}

export async function json(path, options) {
  return (await fetchFrom(path, options)).json();
}

async function inWords(answer) {
  let message = `The server answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // Not the server's own answer but a proxy's.
  }
  message = message.charAt(0).toUpperCase() + message.slice(1);
  const wait = Number(answer.headers.get("retry-after"));
  if (wait > 0) message += `. Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.`;
  return new ApiError(message, answer.status);
}

// Calls `tell(name, data)` for each event of a job until its last, however often the connection
// breaks in between; `lost(true)` while it is broken.
export async function follow(id, tell, lost, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "last-event-id": last };
      const answer = await fetchFrom(`v1/videos/${id}/events`, { headers, signal });
      if (answer.status === 204) return;
      lost(false);
      for await (const event of events(answer.body)) {
        last = event.id ?? last;
        if (signal.aborted) return;
        tell(event.name, event.data);
        if (FINAL.has(event.name)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) return tell("deleted", { id });
      if (error.status >= 400 && error.status < 500) throw error;
    }
    lost(true);
    await new Promise((again) => setTimeout(again, AGAIN_MS));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = new Map(
        block.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(":") + 2)]),
      );
      if (!fields.has("event")) continue;
      const data = JSON.parse(fields.get("data"));
      yield { id: fields.get("id"), name: fields.get("event"), data };
    }
  }
}
