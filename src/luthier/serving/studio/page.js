// The page of `luthier studio`. Whatever runs and models say is shown as text, never as markup.
import { kept } from "./theme.js";
import { chart, legend } from "./chart.js";

const $ = (id) => document.getElementById(id);
const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const MAIN = { epochs: null, steps: "as epochs say", lr: "the method's own", batch: null, max_length: null, eval_every: "a tenth of the run" };
// settings of training that are always shown, and what an empty one means
const number = new Intl.NumberFormat("en");
let key = kept(() => sessionStorage.getItem("key")) ?? ""; // for this tab alone
let there = null; // what can be chosen
let looked = null; // the choices that the last look was of
let shownRun = null;
const chosen = new Set();

// --- the server ---

async function call(path, body) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const told = await answer.json().catch(() => null);
  if (answer.ok) return told;
  throw Object.assign(new Error(told?.error?.message ?? `The studio answered with status ${answer.status}.`), { status: answer.status });
}

async function attempt(act, place = "trouble") {
  try {
    $(place).textContent = "";
    return await act();
  } catch (error) {
    if (error.status === 401) lock();
    else $(place).textContent = error.status ? error.message : `The studio cannot be reached (${error.message}).`;
    return null;
  }
}

function lock() {
  $("unlock").hidden = false;
  $("tabs").hidden = $("new").hidden = $("runs").hidden = true;
  $("trouble").textContent = key ? "That is not the key." : "";
  $("key").focus();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  kept(() => sessionStorage.setItem("key", key));
  open();
});

// --- what can be chosen ---

const option = (value, text = value) => Object.assign(document.createElement("option"), { value, textContent: text });

function group(label, options) {
  const made = Object.assign(document.createElement("optgroup"), { label });
  made.append(...options);
  return made;
}

async function open() {
  there = await attempt(() => call("api/there"));
  if (!there) return;
  $("unlock").hidden = true;
  $("tabs").hidden = false;
  const here = there.models.filter((m) => m.kind === "folder");
  const known = there.models.filter((m) => m.kind === "catalogue");
  $("model").replaceChildren(
    ...(here.length ? [group("In the folders", here.map((m) => option(m.name)))] : []),
    group("Catalogue", known.map((m) => option(m.name, m.here ? m.name : `${m.name} (to be fetched)`))),
  );
  $("data").replaceChildren(...there.data.map((d) => option(d.name, `${d.name} (${bytes(d.bytes)})`)));
  $("held").append(...there.data.map((d) => option(d.name)));
  $("method").replaceChildren(...there.methods.map((m) => option(m.name)));
  $("method").value = "lora";
  $("to").replaceChildren(...there.formats.map((name) => option(name)));
  $("to").value = "peft";
  $("folders").textContent = there.folders.join(", ");
  const settings = Object.entries(there.training);
  fields($("training"), Object.entries(MAIN).map(([name, empty]) => [name, there.training[name], "", empty]), "training");
  fields($("training-more"), settings.filter(([name]) => !(name in MAIN)).map(([name, value]) => [name, value]), "training");
  if (!there.data.length) $("trouble").textContent = "There is no file of rows in these folders; start the studio with folders that hold data.";
  tellModel();
  await pickMethod();
  await refresh();
  show(location.hash === "#runs" ? "runs" : "new");
}

const bytes = (n) => (n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toFixed(0)} KiB` : `${(n / 1048576).toFixed(1)} MiB`);

function tellModel() {
  $("model-told").textContent = there.models.find((m) => m.name === $("model").value)?.told ?? "";
}

function fields(place, settings, kind) {
  place.replaceChildren(...settings.map(([name, value, help, empty]) => {
    const box = make("div", "");
    const id = `${kind}-${name}`;
    const label = Object.assign(make("label", "", name === "lr" ? "learning rate" : name.replaceAll("_", " ")), { htmlFor: id, title: help ?? "" });
    const input = typeof value === "boolean" ? document.createElement("select") : document.createElement("input");
    if (typeof value === "boolean") input.append(option("", value ? "yes (default)" : "no (default)"), option(String(!value), value ? "no" : "yes"));
    else input.placeholder = empty ?? (value === null ? "none" : String(value));
    Object.assign(input, { id, autocomplete: "off", spellcheck: false });
    input.dataset.kind = kind;
    input.dataset.name = name;
    box.append(label, input);
    return box;
  }));
}

async function pickMethod() {
  const name = $("method").value;
  $("equation").textContent = there.methods.find((m) => m.name === name)?.equation ?? "";
  $("name").value = free(name);
  const told = await attempt(() => call(`api/methods/${encodeURIComponent(name)}`));
  if (!told || name !== $("method").value) return;
  $("source").textContent = `${told.text.replaceAll("\n", " ").split(/(?<=\.) /)[0]} Source: ${told.paper}.`;
  $("where").placeholder = told["default where"] ?? "";
  fields($("settings"), told.settings.map((s) => [s.name, s.value, s.doc]), "settings");
}

const names = new Set();
function free(method) {
  let n = 1;
  while (names.has(`${method}-${n}`)) n += 1;
  return `${method}-${n}`;
}

$("method").addEventListener("change", pickMethod);
$("model").addEventListener("change", tellModel);

// --- the plan, the look, the start ---

function typed(text) {
  if (text === "true" || text === "false") return text === "true";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function plan() {
  const told = { model: $("hub").value.trim() || $("model").value, data: $("data").value, method: $("method").value, settings: {}, training: {} };
  for (const input of document.querySelectorAll("[data-kind]")) {
    if (input.value.trim() !== "") told[input.dataset.kind][input.dataset.name] = typed(input.value.trim());
  }
  const more = { where: $("where").value.trim(), columns: $("columns").value.trim(), eval_data: $("held").value };
  for (const [name, value] of Object.entries(more)) if (value) told[name] = value;
  if ($("limit").value) told.limit = Number($("limit").value);
  return told;
}

$("plan").addEventListener("input", (event) => {
  if (event.target.id !== "name") stale();
});

function stale() {
  looked = null;
  $("start").disabled = true;
  $("why").textContent = "Look again: the choices have changed.";
}

$("plan").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = plan();
  $("look").disabled = true;
  $("why").textContent = "Reading the data and the model …";
  $("wait").textContent = "Looking …";
  $("seen").hidden = true;
  $("wait").hidden = false;
  const told = await attempt(() => call("api/look", asked));
  $("look").disabled = false;
  if (JSON.stringify(asked) !== JSON.stringify(plan())) return stale();
  $("why").textContent = told ? "Nothing was written yet. Start makes the run's folder." : "The look failed; mend what it says.";
  $("wait").textContent = "Nothing to show yet.";
  if (told) seen(told, asked);
});

function pairs(place, found) {
  place.replaceChildren(...found.map(([name, value, more]) => {
    const box = document.createElement("div");
    const said = make("dd", "", value);
    if (more) said.append(make("small", "", more));
    box.append(make("dt", "", name), said);
    return box;
  }));
}

function lines(place, found) {
  place.replaceChildren(...found.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

const mib = (n) => (n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : `${Math.max(1, Math.round(n / 2 ** 20))} MiB`);

function seen(told, asked) {
  looked = asked;
  $("start").disabled = false;
  $("wait").hidden = true;
  $("seen").hidden = false;
  const { plan: cost, memory } = told;
  pairs($("price"), [
    ["Trainable", number.format(cost.trainable), `${(100 * cost.trainable / cost.total).toPrecision(3)}% of ${number.format(cost.total)}`],
    ["Memory, estimated", mib(memory.total), `weights ${mib(memory.weights)}, activations ${mib(memory.activations)}`],
    ["Steps", number.format(cost.steps), `${number.format(cost.per_epoch)} an epoch`],
    ["Adapter on disk", `${(cost.disk / 2 ** 20).toFixed(2)} MiB`],
    ["Tokens an epoch", number.format(cost.tokens), cost.learned ? `${number.format(cost.learned)} in the loss` : told.task],
    ["Longest row", `${number.format(cost.longest)} tokens`, `row ${cost.longest_row}`],
  ]);
  lines($("mapped"), Object.entries(told.columns));
  $("unread").textContent = told.not_read.length ? `Nothing reads: ${told.not_read.join(", ")}.` : "";
  $("tokens").replaceChildren(...told.rows.flatMap((row) => {
    const box = make("div", "tokens");
    box.append(...row.tokens.map(([text, learned]) => make(learned ? "mark" : "span", "", text)));
    return [make("h4", "", row.title), ...pictured(row.pictures), box];
  }));
  if (matchMedia("(max-width: 44rem)").matches) $("before").scrollIntoView();
  lines($("told"), [...Object.entries(told.figures), ...told.notes.map((note) => ["note", note])]);
}

function pictured(pictures) {
  const box = make("div", "pictures");
  box.append(...pictures.map(({ name, url }) => Object.assign(document.createElement("img"), { src: url, alt: name ? short(name) : "a picture of the row" })));
  return pictures.length ? [box] : [];
}

$("start").addEventListener("click", async () => {
  if (!$("name").reportValidity() || !looked) return;
  const name = $("name").value.trim();
  const done = await attempt(() => call("api/runs", { ...looked, name }));
  if (!done) return;
  $("name").value = free($("method").value);
  show("runs");
  await pick(name);
});

// --- parts ---

function show(part) {
  for (const name of ["new", "runs"]) $(name).hidden = name !== part;
  for (const button of document.querySelectorAll("[data-part]")) {
    if (button.dataset.part === part) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  history.replaceState(null, "", part === "runs" ? "#runs" : "#");
}

for (const button of document.querySelectorAll("[data-part]")) button.addEventListener("click", () => { show(button.dataset.part); refresh(); });

// --- runs ---

const figure = (value) => (value === null || value === undefined ? "" : value.toPrecision(4));
const short = (path) => String(path ?? "").split("/").slice(-1)[0];
let listed = [];

async function refresh() {
  const told = await attempt(() => call("api/runs"));
  if (!told) return;
  listed = told.runs;
  names.clear();
  listed.forEach((run) => names.add(run.name));
  if (names.has($("name").value)) $("name").value = free($("method").value);
  $("count").textContent = listed.length || "";
  $("none").hidden = listed.length > 0;
  $("listing").hidden = $("together").hidden = listed.length === 0;
  $("rows").replaceChildren(...listed.map(row));
  together();
}

function row(run) {
  const made = document.createElement("tr");
  made.setAttribute("aria-selected", String(run.name === shownRun));
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.has(run.name), value: run.name });
  box.setAttribute("aria-label", `Choose ${run.name}`);
  box.addEventListener("change", () => { chosen[box.checked ? "add" : "delete"](run.name); together(); });
  const head = document.createElement("th");
  head.scope = "row";
  const button = Object.assign(make("button", "", run.name), { type: "button" });
  button.addEventListener("click", () => pick(run.name));
  head.append(button);
  const state = Object.assign(make("span", "state", run.state));
  state.dataset.state = run.state;
  const cells = [box, null, state, run.method, short(run.model), short(run.data)].map((each) => {
    if (each === null) return head;
    const cell = document.createElement("td");
    cell.append(each ?? "");
    return cell;
  });
  const figures = [run.steps ? `${run.step} of ${run.steps}` : "", figure(run.loss), figure(run.eval_loss)];
  made.append(...cells, ...figures.map((text) => make("td", "figure", text)));
  return made;
}

function together() {
  for (const name of [...chosen]) if (!names.has(name)) chosen.delete(name);
  $("compare").disabled = chosen.size < 2;
  $("talk").disabled = chosen.size < 1;
}

async function pick(name) {
  shownRun = name;
  $("tried").hidden = true;
  $("acted").textContent = "";
  await Promise.all([refresh(), watch()]);
  $("detail").scrollIntoView({ block: "nearest" });
}

async function watch() {
  const name = shownRun;
  if (!name) return;
  const run = await attempt(() => call(`api/runs/${encodeURIComponent(name)}`));
  if (!run || name !== shownRun) return;
  const busy = run.state === "running" || run.state === "starting";
  $("detail").hidden = false;
  $("detail-name").textContent = run.name;
  $("detail-state").textContent = run.state;
  $("detail-state").dataset.state = run.state;
  $("progress").hidden = !run.steps;
  $("progress").max = run.steps || 1;
  $("progress").value = run.step || 0;
  $("stop").hidden = !busy;
  $("resume").hidden = !["stopped", "begun"].includes(run.state);
  $("try").hidden = $("export").hidden = $("to").hidden = run.state !== "finished";
  const trouble = run.jobs.train?.code === 130 ? "" : run.jobs.train?.trouble ?? "";
  $("detail-trouble").textContent = run.trouble ?? trouble;
  told(run.jobs.export);
  const series = Object.entries(run.curves ?? {}).filter(([, points]) => points.length).map(([label, points]) => ({ label: label.replace("eval_loss", "held out").replace("loss", "training"), points }));
  $("chart").replaceChildren(...(series.length ? [legend(series), chart(series, $("detail").clientWidth, run.steps)] : []));
  const settings = run.settings ?? {};
  pairs($("figures"), run.method ? [
    ["Method", run.method], ["Model", short(run.model)], ["Data", short(run.data)],
    ["Step", `${run.step} of ${run.steps}`, run.seconds ? `${run.seconds.toFixed(0)} s so far` : ""],
    ["Training loss", figure(run.loss) || "–"], ["Held-out loss", figure(run.eval_loss) || "–"],
    ["Learning rate", String(settings.lr)], ["Where", String(settings.where)],
  ] : []);
  $("command").textContent = run.command ?? "";
  $("tail").textContent = run.jobs.train?.tail.join("\n") ?? "This studio did not start it.";
  $("sampled").hidden = !run.answers.length;
  $("sampled-rows").replaceChildren(...run.answers.map((each) => said(`step ${each.step}, reward ${each.reward ?? "unknown"}`, each.prompt, each.answer)));
}

function told(job) {
  if (!job) return;
  $("acted").textContent = job.runs ? "Exporting …" : job.code ? `The export failed: ${job.trouble}` : "Exported: " + (job.tail.slice(-1)[0] ?? "");
}

function said(head, asked, answer) {
  const box = make("div", "shown");
  box.append(make("h4", "", head), make("p", "", asked), make("p", "said", answer));
  return box;
}

async function act(path, body = {}) {
  const done = await attempt(() => call(`api/runs/${encodeURIComponent(shownRun)}/${path}`, body), "detail-trouble");
  if (done) await Promise.all([refresh(), watch()]);
  return done;
}

$("stop").addEventListener("click", () => act("stop"));
$("resume").addEventListener("click", () => act("resume"));
$("export").addEventListener("click", () => act("export", { to: $("to").value }));
$("try").addEventListener("click", async () => {
  $("try").disabled = true;
  $("acted").textContent = "Predicting on the first rows …";
  const told = await act("try");
  $("try").disabled = false;
  $("acted").textContent = "";
  $("tried").hidden = !told;
  if (!told) return;
  $("tried-rows").replaceChildren(...told.rows.map((each, i) => {
    const box = make("div", "shown");
    const list = make("dl", "pairs");
    lines(list, Object.entries(each).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]));
    box.append(make("h4", "", `row ${i + 1}`), list);
    return box;
  }));
});

// --- comparing and chatting ---

$("compare").addEventListener("click", async () => {
  const asked = [...chosen].slice(0, 5);
  const runs = await attempt(() => Promise.all(asked.map((name) => call(`api/runs/${encodeURIComponent(name)}`))));
  if (!runs) return;
  const kind = runs.every((run) => run.curves?.eval_loss?.length) ? "eval_loss" : "loss";
  const series = runs.map((run) => ({ label: run.name, points: run.curves?.[kind] ?? [] }));
  $("compared").hidden = false;
  $("overlay").replaceChildren(make("p", "soft", kind === "loss" ? "Training loss" : "Loss on held-out rows"), legend(series), chart(series, $("compared").clientWidth));
  const facts = runs.map((run) => ({ model: run.model, data: run.data, method: run.method, "training loss": figure(run.loss), "held-out loss": figure(run.eval_loss), seconds: run.seconds?.toFixed(1), ...run.settings }));
  const all = [...new Set(facts.flatMap(Object.keys))];
  const differ = all.filter((name) => new Set(facts.map((each) => JSON.stringify(each[name]))).size > 1);
  const head = document.createElement("tr");
  head.append(make("th", ""), ...asked.map((name) => Object.assign(make("th", "", name), { scope: "col" })));
  const body = differ.map((name) => {
    const line = document.createElement("tr");
    line.append(Object.assign(make("th", "", name), { scope: "row" }), ...facts.map((each) => make("td", "", each[name] === undefined ? "" : String(each[name]))));
    return line;
  });
  const [top, rest] = [document.createElement("thead"), document.createElement("tbody")];
  top.append(head);
  rest.append(...body);
  $("differing").replaceChildren(top, rest);
  $("compared").scrollIntoView({ block: "nearest" });
});

$("talk").addEventListener("click", async () => {
  $("talk").disabled = true;
  $("talking").textContent = "Loading the model …";
  const done = await attempt(() => call("api/chat", { runs: [...chosen] }));
  $("talking").textContent = "";
  together();
  if (done) location.href = "chat/";
});

async function tick() {
  const busy = listed.some((run) => ["running", "starting"].includes(run.state)) || $("acted").textContent.startsWith("Exporting");
  if (busy && !document.hidden && $("unlock").hidden) await Promise.all([refresh(), watch()]);
  setTimeout(tick, 1000);
}

open();
tick();
