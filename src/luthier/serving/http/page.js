// Chat with the models of the server that this page came from. Whatever models say is shown as text, never as markup.
import { kept } from "./theme.js";

const $ = (id) => document.getElementById(id);
const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

// --- the server ---

let key = kept(() => sessionStorage.getItem("key")) ?? ""; // for this tab alone
const turns = []; // {asked, pictures, answers: Map(model -> text)}
let attached = []; // {name, url} of the message that is being written
const SIDE = 512; // pixels to which a picture is made smaller: all of a conversation are sent at every turn
let running = null; // the AbortController of the answers under way

class Trouble extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function call(path, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(options.body && { "Content-Type": "application/json" }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Trouble(response.status, told?.error?.message ?? `The server answered with status ${response.status}.`);
}

async function* events(response) {
  let rest = "";
  for await (const text of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
  throw new Trouble(0, "The connection ended before the answer did.");
}

async function* pieces(stream) { // not every browser iterates streams by itself
  const reader = stream.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

// --- models and the key ---

async function open() {
  try {
    const { data } = await (await call("v1/models")).json();
    show(data);
  } catch (error) {
    const locked = error.status === 401;
    $("unlock").hidden = !locked;
    $(locked ? "locked" : "trouble").textContent = locked && !key ? "" : locked ? "That is not the key." : reason(error);
    if (locked) $("key").focus();
  }
}

function show(models) {
  const before = new Set(chosen());
  $("models").replaceChildren(...models.map(({ id, parent }, index) => {
    const chip = make("label", "chip");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: id });
    box.checked = before.size ? before.has(id) : index < 2; // the base and the first adapter
    chip.append(box, make("span", "", id), ...(parent ? [] : [make("small", "", "base")]));
    return chip;
  }));
  $("unlock").hidden = true;
  $("trouble").textContent = "";
  $("choice").hidden = $("ask").hidden = false;
  $("attach").hidden = !models.some((model) => model.pictures);
  $("empty").hidden = turns.length > 0;
  if (matchMedia("(hover: hover)").matches) $("prompt").focus();
}

const chosen = () => [...$("models").querySelectorAll(":checked")].map((box) => box.value);

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  kept(() => sessionStorage.setItem("key", key));
  open();
});

// --- asking ---

function messages(model, asked) { // what this model was asked and said itself
  const system = $("system").value.trim();
  const own = turns.filter((turn) => turn.answers.get(model));
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...own.flatMap((turn) => [{ role: "user", content: content(turn) }, { role: "assistant", content: turn.answers.get(model) }]),
    { role: "user", content: content(asked) },
  ];
}

function content({ asked, pictures }) {
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return parts.length ? [...parts, { type: "text", text: asked }] : asked;
}

function body(model, asked) {
  const seed = $("seed").value;
  return JSON.stringify({
    model,
    messages: messages(model, asked),
    temperature: Number($("temperature").value),
    max_tokens: Number($("most").value),
    ...(seed !== "" && { seed: Number(seed) }),
    stream: true,
    stream_options: { include_usage: true },
  });
}

async function answer(model, sent, card, signal) {
  const text = card.querySelector(".text");
  const note = (kind, words) => card.append(make("p", kind, words));
  const start = performance.now();
  let finish = null, usage = null;
  try {
    for await (const event of events(await call("v1/chat/completions", { method: "POST", body: sent, signal }))) {
      if (event.error) throw new Trouble(0, event.error.message);
      follow(() => text.append(event.choices[0]?.delta.content ?? ""));
      finish = event.choices[0]?.finish_reason ?? finish;
      usage = event.usage ?? usage;
    }
    const seconds = (performance.now() - start) / 1000;
    const count = usage.completion_tokens;
    const cut = finish === "length" ? " · cut at max tokens" : "";
    note("figures", `${count} token${count === 1 ? "" : "s"} · ${seconds.toFixed(1)} s${cut}`);
  } catch (error) {
    if (error.name === "AbortError") note("figures", "stopped");
    else note("bad", reason(error));
    if (error.status === 401) open();
  } finally {
    card.setAttribute("aria-busy", "false");
  }
  return text.textContent;
}

const reason = (error) => (error instanceof Trouble ? error.message : `The server cannot be reached (${error.message}).`);

function follow(change) { // stays at the end for those who are there
  const near = innerHeight + scrollY > document.body.scrollHeight - 80;
  change();
  if (near) scrollTo(0, document.body.scrollHeight);
}

async function ask(asked, pictures, models) {
  const turn = { asked, pictures, answers: new Map() };
  const shown = make("article", "turn");
  const answers = make("div", "answers");
  const seen = make("div", "pictures");
  seen.append(...pictures.map(image));
  shown.append(...(pictures.length ? [seen] : []), make("p", "asked", asked), answers);
  const cards = models.map((model) => {
    const card = make("section", "answer");
    card.setAttribute("aria-busy", "true");
    card.append(make("h2", "", model), make("p", "text"));
    answers.append(card);
    return card;
  });
  $("log").append(shown);
  scrollTo(0, document.body.scrollHeight);
  const control = new AbortController();
  running = control;
  busy(true);
  const sent = models.map((model) => body(model, turn));
  const said = await Promise.all(models.map((model, i) => answer(model, sent[i], cards[i], control.signal)));
  if (running !== control) return; // another chat has begun
  models.forEach((model, i) => turn.answers.set(model, said[i]));
  turns.push(turn);
  running = null;
  busy(false);
  $("status").textContent = `${models.length === 1 ? "The answer is" : `${models.length} answers are`} there.`;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("empty").hidden = is || turns.length > 0;
  $("fresh").disabled = !is && turns.length === 0;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = $("prompt").value.trim();
  const models = chosen();
  const wrong = ["temperature", "most", "seed"].find((id) => !$(id).checkValidity());
  $("trouble").textContent = models.length ? "" : "Choose at least one model.";
  if (wrong) document.querySelector("details").open = true;
  if (wrong && !$(wrong).reportValidity()) return;
  if (running || !asked || !models.length) return;
  $("prompt").value = "";
  const pictures = attached;
  attach([]);
  ask(asked, pictures, models);
});

// --- pictures ---

const image = ({ name, url }) => Object.assign(document.createElement("img"), { src: url, alt: name });

function attach(pictures) {
  attached = pictures;
  $("attached").hidden = !pictures.length;
  $("attached").replaceChildren(...pictures.map((picture) => {
    const button = Object.assign(make("button", ""), { type: "button", title: `Take ${picture.name} off` });
    button.append(image(picture));
    button.addEventListener("click", () => attach(attached.filter((each) => each !== picture)));
    return button;
  }));
}

async function read(file) { // as it is where it is small, else scaled
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { name: file.name, url: scale < 1 ? canvas.toDataURL("image/jpeg", 0.9) : canvas.toDataURL("image/png") };
}

$("attach").addEventListener("click", () => $("pictures").click());

$("pictures").addEventListener("change", async () => {
  const files = [...$("pictures").files];
  $("pictures").value = "";
  const found = await Promise.allSettled(files.map(read));
  attach([...attached, ...found.filter((each) => each.status === "fulfilled").map((each) => each.value)]);
  const bad = files.filter((_, i) => found[i].status === "rejected");
  $("trouble").textContent = bad.length ? `${bad.map((file) => file.name).join(", ")} cannot be read as a picture.` : "";
  $("prompt").focus();
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});

$("stop").addEventListener("click", () => running?.abort());

$("fresh").addEventListener("click", () => {
  running?.abort();
  running = null;
  turns.length = 0;
  attach([]);
  $("log").replaceChildren();
  busy(false);
  open();
  $("prompt").focus();
});

open();
