"use strict";
// The page reads without any of this: sorting, copying and the choice of a theme are added here.
const root = document.documentElement;

const theme = document.getElementById("theme");
const preferred = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
const kept = (act) => { try { return act(localStorage); } catch { return null; } }; // files may have no storage
theme.hidden = false;
if (["light", "dark"].includes(kept((store) => store.getItem("theme")))) root.dataset.theme = localStorage.theme;
preferred.addEventListener("change", nameTheme);
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  kept((store) => store.setItem("theme", root.dataset.theme));
  nameTheme();
});
nameTheme();

function compare(a, b, direction) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what nobody measured comes last, either way
  const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  return direction === "ascending" ? order : -order;
}

function sort(button) {
  const head = button.closest("th");
  const table = head.closest("table");
  const other = { ascending: "descending", descending: "ascending" };
  const direction = other[head.getAttribute("aria-sort")] ?? button.dataset.first;
  const key = (row) => row.cells[head.cellIndex].dataset.sort;
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), direction)));
  table.querySelectorAll("[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", direction);
  table.closest(".scroll").nextElementSibling.textContent = `Sorted by ${button.textContent}, ${direction}`;
}
document.querySelectorAll(".sort").forEach((each) => each.addEventListener("click", () => sort(each)));

async function copy(button) {
  const source = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch { // no permission: the reader's own keys
    getSelection().selectAllChildren(source);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}
document.querySelectorAll(".copy").forEach((each) => {
  each.hidden = false;
  each.addEventListener("click", () => copy(each));
});

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => { each.open = true; });
});
addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
