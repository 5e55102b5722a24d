// Light or dark: the system's choice, or the one that the button `theme` keeps.
export const kept = (act) => { try { return act(); } catch { return null; } }; // browsers may refuse storage

const button = document.getElementById("theme");
const root = document.documentElement;
const preferred = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
const nameTheme = () => { button.textContent = isDark() ? "Light" : "Dark"; };
const theme = kept(() => localStorage.getItem("theme"));
if (["light", "dark"].includes(theme)) root.dataset.theme = theme;
preferred.addEventListener("change", nameTheme);
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  kept(() => localStorage.setItem("theme", root.dataset.theme));
  nameTheme();
});
nameTheme();
