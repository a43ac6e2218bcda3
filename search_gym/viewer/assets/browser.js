// The browser of transcripts: filters, a list, one episode or two beside each other, colours, numbers, keys.
(async () => {
  const source = document.getElementById("episodes"), root = document.getElementById("browser");
  if (!source || !root) return;
  const $ = selector => root.querySelector(selector);
  const form = $(".filters"), list = $(".list"), columns = $(".columns"), tip = $(".tip");
  const color = $("[name=color]"), beside = $("[name=beside]"), fields = form.elements;
  let data;
  try {
    data = await episodes.read(source);
  } catch (error) {
    root.hidden = false;
    $(".count").textContent = `Transcripts cannot be read here (${error}); a browser of 2023 or later can.`;
    return;
  }
  const all = data.episodes, node = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const fill = (select, options) => select.replaceChildren(...options.map(([value, label]) => node("option", { value }, label)));
  const present = key => [...new Set(all.map(episode => episode[key]))];
  const names = (key, table) => present(key).map(place => [String(place), table[place]]);
  const format = value => (Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : value.toFixed(3)).replace(/^-/, "−");

  // Filters

  const ANY = ["", "any"];
  fill(fields.run, [ANY, ...names("run", data.runs)]);
  fields.run.parentElement.hidden = data.runs.length < 2;
  fill(fields.label, [ANY, ...names("label", data.labels)]);
  fill(fields.kind, [ANY, ...names("kind", data.kinds)]);
  const rewards = [...new Set(all.map(episode => episode.reward))].sort((a, b) => a - b);
  const few = rewards.length <= 6;
  fill(fields.reward, [ANY, ["right", "right answer"], ["wrong", "wrong answer"],
    ...(few ? rewards.map(reward => [`=${reward}`, `${reward}`]) : [["<=0", "0 or less"], ["0<1", "between 0 and 1"], [">=1", "1 or more"]])]);
  const searches = [...new Set(all.map(episode => episode.searches).filter(count => count !== null))].sort((a, b) => a - b);
  fill(fields.searches, [ANY, ...searches.map(count => [String(count), String(count)])]);
  const byReward = {
    right: episode => episode.em === 1, wrong: episode => episode.em !== 1, "<=0": episode => episode.reward <= 0,
    "0<1": episode => episode.reward > 0 && episode.reward < 1, ">=1": episode => episode.reward >= 1,
  };
  const matches = () => {
    const is = (name, key) => fields[name].value === "" ? () => true : episode => String(episode[key]) === fields[name].value;
    const tests = [is("run", "run"), is("label", "label"), is("kind", "kind"), is("searches", "searches")];
    const reward = fields.reward.value, words = fields.find.value.trim().toLowerCase();
    if (reward) tests.push(byReward[reward] ?? (episode => `=${episode.reward}` === reward));
    if (words) tests.push(episode => episodes.text(data, episode).includes(words));
    return all.filter(episode => tests.every(test => test(episode)));
  };

  // The list

  let shown = [], chosen = null;
  const verdict = episode => episode.em === 1 ? "right" : episode.reward > 0 ? "partly" : "wrong";
  const plural = (count, word) => `${count} ${count === 1 ? word : word.endsWith("ch") ? `${word}es` : `${word}s`}`;
  const place = episode => [data.labels[episode.label], data.runs.length > 1 ? data.runs[episode.run] : ""].filter(Boolean).join(" · ");
  const item = (episode, number) => {
    const facts = [place(episode), data.kinds[episode.kind], episode.searches === null ? "" : plural(episode.searches, "search")];
    const entry = node("div", { id: `episode-${number}` }, node("b", { className: verdict(episode) }, episode.question), node("span", {}, facts.filter(Boolean).join(" · ")));
    entry.setAttribute("role", "option");
    entry.dataset.at = number;
    return entry;
  };
  const refresh = () => {
    shown = matches();
    list.replaceChildren(...shown.map(item));
    $(".count").textContent = `${shown.length} of ${plural(all.length, "episode")}`;
    choose(shown.includes(chosen) ? shown.indexOf(chosen) : 0);
  };
  const choose = number => {
    const old = list.querySelector("[aria-selected=true]"), next = list.children[number];
    old?.setAttribute("aria-selected", "false");
    chosen = shown[number] ?? null;
    if (next) {
      next.setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", next.id);
      const { top, bottom } = next.getBoundingClientRect(), frame = list.getBoundingClientRect();
      if (top < frame.top) list.scrollTop += top - frame.top;
      if (bottom > frame.bottom) list.scrollTop += bottom - frame.bottom;
    } else list.removeAttribute("aria-activedescendant");
    draw();
  };
  const move = step => { if (shown.length) choose(Math.min(Math.max(shown.indexOf(chosen) + step, 0), shown.length - 1)); };

  // One episode, and another answer to the same question beside it

  let drawn = [];
  const others = () => chosen === null ? [] : all.filter(episode => episode !== chosen && episode.question === chosen.question);
  const wish = { label: null, off: false };
  const offer = () => {
    const found = others();
    fill(beside, [["", "nothing"], ...found.map(episode => [String(all.indexOf(episode)), place(episode)])]);
    if (wish.off) return;
    const sameRun = found.filter(episode => episode.run === chosen.run);
    const pick = found.find(episode => place(episode) === wish.label) ?? sameRun.find(episode => episode.label !== chosen.label) ?? found[0];
    beside.value = pick ? String(all.indexOf(pick)) : "";
  };
  const draw = () => {
    hideTip();
    drawn = [];
    columns.replaceChildren();
    $(".question").textContent = chosen?.question ?? "No episode matches";
    $(".facts").textContent = chosen ? `Right answer: ${chosen.answers.map(answer => `“${answer}”`).join(" or ")} · ${data.kinds[chosen.kind]}` : "Clear a filter.";
    if (!chosen) return;
    offer();
    drawColumns();
  };
  const drawColumns = () => {
    hideTip();
    drawn = [chosen, all[beside.value === "" ? -1 : Number(beside.value)]].filter(Boolean).map(episode => ({ episode, ...episodes.draw(data, episode), at: -1 }));
    columns.replaceChildren(...drawn.map(column));
    shade();
  };
  const column = ({ episode, holder }, number) => {
    const sampled = episode.spans.reduce((sum, [author, length]) => sum + (author === 1 ? length : 0), 0);
    const answer = episode.answer === null ? "no answer" : `answered “${episode.answer}”`;
    const facts = [`reward ${episode.reward}`, episode.searches === null ? "" : plural(episode.searches, "search"), `${sampled} of ${episode.tokens.length} tokens sampled`];
    const heading = node("h4", { className: verdict(episode) }, `${place(episode) || "Episode"}: ${answer}`, node("small", {}, facts.filter(Boolean).join(" · ")));
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `Transcript, ${place(episode)}: arrow keys go from token to token`);
    holder.dataset.column = number;
    return node("div", { className: "transcript" }, heading, holder);
  };

  // Colours: where the scale is in the middle, what counts as far from it, and which words stand at its ends

  const SCALES = {
    "log-probability": { center: 0, ends: far => [format(-far), "0"], words: "less likely is darker" },
    value: { center: 0, ends: far => [format(-far), "0", format(far)], words: "" },
    advantage: { center: 0, ends: far => [format(-far), "0", format(far)], words: "" },
    ratio: { center: 1, ends: far => [format(1 / Math.exp(far)), "1", format(Math.exp(far))], words: "" },
  };
  const known = data.values.map((_, i) => i).filter(i => all.some(episode => episode.values[i]?.some(value => value !== null)));
  fill(color, [["", "author"], ...known.map(i => [String(i), data.values[i]])]);
  const distance = (name, value) => name === "ratio" ? Math.log(Math.max(value, 1e-6)) : value;
  const reaches = new Map();
  const reach = column => {  // One scale for all episodes, so that they can be compared; a hundredth may lie beyond it.
    if (!reaches.has(column)) {
      const far = all.flatMap(episode => (episode.values[column] ?? []).filter(value => value !== null).map(value => Math.abs(distance(data.values[column], value))));
      far.sort((a, b) => a - b);
      reaches.set(column, Math.max(far[Math.floor(0.99 * (far.length - 1))] ?? 0, 1e-6));
    }
    return reaches.get(column);
  };
  const STRONG = 50;
  const shade = () => {
    const scale = $(".scale"), column = color.value === "" ? null : Number(color.value);
    columns.classList.toggle("shaded", column !== null);
    if (column === null) {
      const keys = episodes.AUTHORS.map((author, i) => {
        const swatch = node("i", { className: `swatch ${author}` });
        swatch.style.setProperty("--swatch", `var(--${["panel", "action-panel", "observation-panel"][i]})`);
        return node("li", {}, swatch, author);
      });
      scale.replaceChildren(node("ul", { className: "legend" }, ...keys));
      return;
    }
    const name = data.values[column], far = reach(column), { ends, words } = SCALES[name];
    for (const { episode, holder, flat } of drawn) {
      for (const token of holder.querySelectorAll(".t")) {
        const value = episodes.number(episode, flat[token.dataset.i], column);
        token.classList.remove("up", "down");
        if (value === null) continue;
        const share = Math.min(1, Math.abs(distance(name, value)) / far);
        token.classList.add(distance(name, value) < 0 ? "down" : "up");
        token.style.setProperty("--share", `${Math.round(STRONG * share)}%`);
      }
    }
    const labels = ends(far), low = `color-mix(in srgb, var(--low) ${STRONG}%, transparent)`, high = `color-mix(in srgb, var(--high) ${STRONG}%, transparent)`;
    const ramp = node("i", {});
    ramp.style.background = `linear-gradient(90deg, ${low}, transparent${labels.length > 2 ? `, ${high}` : ""})`;
    const box = node("div", { className: "ramp" }, ramp, node("span", {}, ...labels.map(label => node("span", {}, label))));
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", `${name}, from ${labels[0]} to ${labels.at(-1)}`);
    box.title = [words, "what lies beyond has the colour of the end"].filter(Boolean).join("; ");
    scale.replaceChildren(box);
  };

  // Numbers of a token

  const hideTip = () => { tip.hidden = true; for (const token of columns.querySelectorAll(".at")) token.classList.remove("at"); };
  const describe = ({ episode, flat }, number) => {
    const group = flat[number], places = group.tokens.map(String).join(", ");
    const lines = [`token ${places}, ${episodes.AUTHORS[group.author]}: ${JSON.stringify(group.text)}`];
    data.values.forEach((name, i) => {
      const values = group.sampled === null ? [] : group.tokens.map((_, k) => episode.values[i]?.[group.sampled + k] ?? null);
      if (values.some(value => value !== null)) lines.push(`${name} ${values.map(value => value === null ? "–" : format(value)).join(", ")}`);
    });
    return lines.join("\n");
  };
  const point = token => {
    const holder = token.closest(".tokens"), column = drawn[holder.dataset.column];
    hideTip();
    column.at = Number(token.dataset.i);
    token.classList.add("at");
    tip.textContent = describe(column, column.at);
    tip.hidden = false;
    const box = (token.getClientRects()[0] ?? token.getBoundingClientRect()), { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(box.left, document.documentElement.clientWidth - width - 6))}px`;
    tip.style.top = `${box.bottom + height + 12 > innerHeight ? Math.max(6, box.top - height - 8) : box.bottom + 8}px`;
  };
  columns.addEventListener("pointerover", event => { const token = event.target.closest(".t"); if (token && event.pointerType !== "touch") point(token); });
  columns.addEventListener("pointerleave", hideTip);
  columns.addEventListener("click", event => { const token = event.target.closest(".t"); if (token) point(token); });
  document.addEventListener("click", event => { if (!event.target.closest(".t")) hideTip(); });
  addEventListener("scroll", () => { if (!columns.contains(document.activeElement)) hideTip(); }, { passive: true });
  columns.addEventListener("focusout", hideTip);
  columns.addEventListener("keydown", event => {
    const holder = event.target.closest(".tokens");
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (!holder || step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    const column = drawn[holder.dataset.column];
    const next = Math.min(Math.max(column.at + step, 0), column.flat.length - 1), token = holder.querySelector(`[data-i="${next}"]`);
    event.preventDefault();
    token.scrollIntoView({ block: "nearest" });
    point(token);
  });

  // Keys

  list.addEventListener("click", event => { const entry = event.target.closest("[data-at]"); if (entry) choose(Number(entry.dataset.at)); });
  list.addEventListener("keydown", event => {
    const page = Math.max(1, Math.floor(list.clientHeight / (list.firstElementChild?.offsetHeight || 50)));
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) { event.preventDefault(); move(step); }
  });
  const cycle = select => { select.selectedIndex = (select.selectedIndex + 1) % select.options.length; select.dispatchEvent(new Event("change", { bubbles: true })); };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") { hideTip(); if (event.target === fields.find) fields.find.blur(); }
    if (event.target.matches("input, select, textarea")) return;
    const action = {
      j: () => move(1), k: () => move(-1), c: () => cycle(color), b: () => cycle(beside),
      "/": () => { fields.find.focus(); root.closest("section").scrollIntoView(); },
    }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", refresh);
  form.addEventListener("reset", () => setTimeout(refresh));
  color.addEventListener("change", shade);
  beside.addEventListener("change", () => {
    wish.off = beside.value === "";
    wish.label = wish.off ? null : place(all[Number(beside.value)]);
    drawColumns();
  });

  root.hidden = false;
  // Begin with what was learned: a right answer of the last checkpoint to a question that was once answered wrongly.
  const last = all.at(-1)?.label;
  const learned = all.filter(episode => episode.label === last && episode.em === 1);
  chosen = learned.findLast(episode => all.some(other => other.question === episode.question && other.em !== 1)) ?? learned[0] ?? all[0] ?? null;
  refresh();
})();
