// Reading episodes, and drawing one of them token by token. All text goes through textContent, so that it stays text.
const episodes = {
  AUTHORS: ["prompt", "sampled", "retrieved"],
  TAGS: /<\/?(?:think|search|information|answer)>/g,

  async read(element) {
    const bytes = Uint8Array.from(atob(element.textContent.trim()), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  },

  text(data, episode) {
    return episode.found ??= `${episode.question} ${episode.tokens.map(place => data.texts[place]).join("")}`.toLowerCase();
  },

  // What has to be shown together: tokens that make whole characters, with the place of the first sampled one.
  groups(data, episode) {
    const groups = [];
    let token = 0, sampled = 0;
    for (const [author, length] of episode.spans) {
      const turn = [], stop = token + length;
      let group = null;
      for (; token < stop; token++) {
        group ??= { tokens: [], author, text: "", sampled: author === 1 ? sampled : null };
        group.tokens.push(token);
        group.text += data.texts[episode.tokens[token]];
        if (author === 1) sampled += 1;
        if (group.text || token + 1 === stop) { turn.push(group); group = null; }
      }
      groups.push(turn);
    }
    return groups;
  },

  number(episode, group, column) {
    const values = group.sampled === null ? null : episode.values[column];
    if (!values) return null;
    const known = group.tokens.map((_, i) => values[group.sampled + i]).filter(value => value !== null);
    return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  },

  // The spans of one transcript; group number i of all is the element with data-i = i.
  draw(data, episode) {
    const holder = document.createElement("div"), flat = [];
    holder.className = "tokens";
    for (const turn of this.groups(data, episode)) {
      const block = document.createElement("div"), whole = turn.map(group => group.text).join("");
      const author = this.AUTHORS[turn[0]?.author ?? 0];
      block.className = `turn ${author}${turn.length > 500 ? " long" : ""}`;
      block.dataset.author = author;
      block.dir = "auto";
      const bold = new Uint8Array(whole.length);
      for (const tag of whole.matchAll(this.TAGS)) bold.fill(1, tag.index, tag.index + tag[0].length);
      const first = whole.length - whole.replace(/^\n+/, "").length, last = whole.replace(/\n+$/, "").length;
      let at = 0;
      for (const group of turn) {
        const token = document.createElement("span");
        token.className = "t";
        token.dataset.i = flat.push(group) - 1;
        for (let start = at, stop = at + group.text.length; start < stop;) {
          let end = start + 1;
          while (end < stop && bold[end] === bold[start]) end++;
          let piece = whole.slice(start, end);
          // Line breaks at the edges of a turn are drawn as a sign, not as empty lines.
          if (start < first || end > last) piece = piece.replace(/\n/g, "↵");
          if (start === 0) piece = piece.replace(/^ /, "");
          const part = bold[start] ? document.createElement("b") : token;
          part.append(piece);
          if (part !== token) token.append(part);
          start = end;
        }
        at += group.text.length;
        block.append(token);
      }
      holder.append(block);
    }
    return { holder, flat };
  },
};
