// The page of `luthier annotate --serve`: a row, its label, the next row.

const at = (name) => document.getElementById(name);
let key = "";
let shown = null;
let busy = false;

async function call(path, body) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const init = body ? { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(path, init);
  const told = await answer.json();
  if (answer.ok) return told;
  const error = new Error(told.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function go(path, body) {
  if (busy) return;
  busy = true;
  at("trouble").textContent = "";
  try {
    show(await call(path, body));
  } catch (error) {
    at("unlock").hidden = error.status !== 401;
    at("trouble").textContent = error.status === 401 && !key ? "" : error.message;
    at("waiting").hidden = true;
    if (error.status === 409) { busy = false; return go("row"); }
  } finally {
    busy = false;
  }
}

function show(told) {
  shown = told;
  at("unlock").hidden = true;
  at("desk").hidden = told.row === null;
  at("waiting").hidden = told.row !== null;
  at("waiting").textContent = "All rows of the budget have a label. This page can be closed.";
  at("done").textContent = `${told.labelled} of ${told.budget} labelled`;
  at("number").textContent = `Row ${told.row}`;
  at("text").textContent = told.text;
  const names = told.choices.length ? told.choices : Object.keys(told.classes);
  at("choices").replaceChildren(...names.map((name, i) => choice(name, i)));
  at("own").hidden = told.choices.length > 0;
  at("label").value = "";
  if (!at("own").hidden) at("label").focus();
}

function choice(name, index) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = index < 9 ? `${index + 1} ${name}` : name;
  made.addEventListener("click", () => keep(name));
  made.dataset.name = name;
  return made;
}

const keep = (label) => go("label", { row: shown.row, label });

at("own").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(at("label").value);
});
at("skip").addEventListener("click", () => go("label", { row: shown.row }));
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  go("row");
});
addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || !shown || shown.row === null) return;
  const buttons = at("choices").children;
  if (event.key === "0") go("label", { row: shown.row });
  else if (buttons[Number(event.key) - 1]) keep(buttons[Number(event.key) - 1].dataset.name);
});
go("row");
