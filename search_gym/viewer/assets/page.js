"use strict";
// Theme, sortable tables, and commands to copy.
(() => {
  const themes = ["system", "light", "dark"], root = document.documentElement, button = document.getElementById("theme");
  const remembered = () => { try { return localStorage.getItem("search-gym-theme"); } catch { return null; } };
  const show = theme => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    button.value = theme;
  };
  show(themes.includes(remembered()) ? remembered() : "system");
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(button.value) + 1) % themes.length];
    show(next);
    try { localStorage.setItem("search-gym-theme", next); } catch { /* a page from a file may not remember */ }
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.tHead.addEventListener("click", event => {
      const head = event.target.closest("button")?.closest("th");
      if (!head) return;
      const down = head.getAttribute("aria-sort") !== "descending", column = head.cellIndex;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [Number(x), Number(y)];
        if (x === "" || y === "") return (x === "") - (y === "");  // What is not known stands last in either order.
        const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y, "en", { numeric: true }) : p - q;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  }

  for (const box of document.querySelectorAll(".command")) {
    const copy = box.querySelector("button");
    if (!navigator.clipboard) continue;
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
})();
