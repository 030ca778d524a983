// The table of latents. All text is set as text, never as markup.
"use strict";
for (const root of document.querySelectorAll(".browser")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const PER_PAGE = 25;
  const BEFORE = 12;
  const AFTER = 6;
  const WORDS = data.filter ? data.filter[1] : [];
  const WORD = data.filter ? data.filter[0] : null;
  const columns = [
    { name: "latent", label: "latent", title: "number of the latent in its SAE", digits: 0 },
    ...data.columns,
    { name: "active_on", label: "most active on", title: data.images ? "patches of its largest activations" : "tokens of its largest activations", digits: 0 },
  ];
  const state = { sae: 0, word: "all", query: "", sort: WORD || "latent", down: false, page: 0, open: null };

  const make = (tag, text, parent, attributes = {}) => {
    const node = document.createElement(tag);
    if (text !== null) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (parent) parent.append(node);
    return node;
  };
  const shown = (value, digits) =>
    value === null || value === undefined
      ? "-"
      : typeof value === "number" && digits
        ? value.toFixed(digits)
        : String(value);

  const token = (place) => data.text.strings[data.text.token_ids[place]];
  const words = (from, to) => {
    let text = "";
    for (let place = from; place < to; place++) text += token(place);
    return text;
  };
  const patches = data.images ? data.images.grid[0] * data.images.grid[1] : 0;
  const imageName = (place) => data.images.names[Math.floor(place / patches)];
  const patchAt = (place, height) => {
    const [rows, columns] = data.images.grid;
    const [row, column] = [Math.floor((place % patches) / columns), place % columns];
    const box = make("span", null, null, { class: "patch", title: `${imageName(place)}, row ${row + 1}, column ${column + 1}` });
    make("img", null, box, { src: data.images.urls[Math.floor(place / patches)], alt: imageName(place), height });
    const frame = make("span", null, box, { class: "frame" });
    frame.style.cssText = `left: ${(100 * column) / columns}%; top: ${(100 * row) / rows}%; width: ${100 / columns}%; height: ${100 / rows}%`;
    return box;
  };
  const strongestOf = (examples, n) => [...examples].sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, n);
  const topTokens = (examples) => {
    if (!data.text) return "";
    const strongest = strongestOf(examples, 8);
    return [...new Set(strongest.map(([, place]) => token(place).trim()))].slice(0, 3).join(" · ");
  };

  for (const sae of data.saes) {
    sae.place = new Map(sae.latents.map((latent, i) => [latent, i]));
    sae.rows = sae.examples.map((examples, i) => {
      const named = data.text ? token : data.images ? imageName : null;
      const tokens = named ? examples.map(([, place]) => named(place)) : [];
      const promoted = sae.promoted ? sae.promoted[i].flat() : [];
      const row = {
        latent: sae.latents[i],
        active_on: data.images ? [...new Set(strongestOf(examples, 3).map(([, place]) => imageName(place)))].join(" · ") : topTokens(examples),
        searched: [...tokens, ...promoted].join(" ").toLowerCase(),
      };
      for (const [name, values] of Object.entries(sae.values)) row[name] = values[i];
      return row;
    });
  }

  const controls = make("p", null, root, { class: "controls" });
  const choice = (label, options, change) => {
    const box = make("select", null, make("label", `${label} `, controls));
    options.forEach(([value, text]) => make("option", text, box, { value }));
    box.addEventListener("change", () => change(box.value));
  };
  const update = (change) => {
    Object.assign(state, { page: 0, open: null }, change);
    draw();
  };
  choice("SAE", data.saes.map((sae, i) => [i, sae.name]), (value) => update({ sae: Number(value) }));
  if (WORD) {
    choice("show", [["all", "all latents"], ...WORDS.map((w) => [w, w])], (word) => update({ word }));
  }
  const search = make("input", null, make("label", "search ", controls), {
    type: "search",
    placeholder: data.text ? "token or #latent" : data.images ? "image or #latent" : "#latent",
  });
  search.addEventListener("input", () => update({ query: search.value.trim().toLowerCase() }));
  make("button", "Download CSV", controls, { type: "button" }).addEventListener("click", download);
  const counts = make("p", null, root);
  const scroll = make("div", null, root, { class: "scroll" });
  const table = make("table", null, scroll, { class: "latents" });
  const foot = make("p", null, root, { class: "controls" });

  function selected() {
    const rows = data.saes[state.sae].rows.filter(
      (row) =>
        (state.word === "all" || row[WORD] === state.word) &&
        (!state.query ||
          `#${row.latent}` === state.query ||
          row.searched.includes(state.query)),
    );
    const key = (row) => (state.sort === WORD ? WORDS.indexOf(row[WORD]) : row[state.sort]);
    const order = state.down ? -1 : 1;
    return rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === y) return a.latent - b.latent;
      // what is missing comes last, whichever way
      if (x === null) return 1;
      if (y === null) return -1;
      return x < y ? -order : order;
    });
  }

  function download() {
    const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    const names = columns.map(({ name }) => name);
    const lines = selected().map((row) => names.map((name) => quoted(row[name])).join(","));
    const file = new Blob([["sae", ...names].map(quoted).join(",") + "\n",
      ...lines.map((line) => `${quoted(data.saes[state.sae].name)},${line}\n`)], { type: "text/csv" });
    const link = make("a", null, null, { href: URL.createObjectURL(file), download: "latents.csv" });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function draw() {
    const rows = selected();
    const n_pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
    const { name, rows: all } = data.saes[state.sae];
    const count = (word) => all.filter((row) => row[WORD] === word).length.toLocaleString("en");
    const counted = WORD ? WORDS.map((word) => `${count(word)} ${word}`) : [`${all.length} latents`];
    counts.textContent = `${name}: ${counted.join(", ")}.`;
    table.replaceChildren();
    const head = make("tr", null, make("thead", null, table));
    for (const { name, label, title } of columns) {
      const mark = state.sort === name ? (state.down ? " ▾" : " ▴") : "";
      const cell = make("th", null, head, {
        "aria-sort": mark ? (state.down ? "descending" : "ascending") : "none",
      });
      make("button", label + mark, cell, { type: "button", title })
        .addEventListener("click", () =>
          update({ sort: name, down: state.sort === name ? !state.down : !["latent", WORD].includes(name) }));
    }
    const body = make("tbody", null, table);
    for (const row of rows.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE)) {
      const line = make("tr", null, body, { class: WORD ? row[WORD] : "" });
      for (const { name, digits } of columns) {
        const pictured = name === "active_on" && data.images;
        const cell = make("td", name === "latent" || pictured ? null : shown(row[name], digits), line);
        if (pictured) {
          const examples = data.saes[state.sae].examples[data.saes[state.sae].place.get(row.latent)];
          for (const [, place] of strongestOf(examples, 3)) cell.append(patchAt(place, 48));
        }
        if (name !== "latent") continue;
        const open = state.open === row.latent;
        make("button", `${open ? "▾" : "▸"} ${row.latent}`, cell, {
          type: "button", "aria-expanded": String(open), title: "its contexts and its partners",
        }).addEventListener("click", () => {
          state.open = open ? null : row.latent;
          draw();
        });
      }
      if (state.open === row.latent) details(make("td", null, make("tr", null, body), {
        colspan: columns.length, class: "details",
      }), row.latent);
    }
    foot.replaceChildren();
    for (const [text, step] of [["‹", -1], ["›", 1]]) {
      const button = make("button", text, foot, {
        type: "button", "aria-label": step < 0 ? "previous page" : "next page",
      });
      button.disabled = state.page + step < 0 || state.page + step >= n_pages;
      button.addEventListener("click", () => {
        state.page += step;
        draw();
      });
    }
    make("span", ` page ${state.page + 1} of ${n_pages}, ${rows.length.toLocaleString("en")} latents`, foot);
  }

  function details(cell, latent) {
    const sae = data.saes[state.sae];
    const place = sae.place.get(latent);
    const side = make("div", null, cell, { class: "side" });
    panel(side, `${sae.name}, latent ${latent}`, sae, latent, false);
    for (const partners of sae.partners) {
      const partner = partners.partner[place];
      if (partner === null) {
        panel(side, `${partners.sae}: no partner`, null);
        continue;
      }
      const other = data.saes.find((each) => each.name === partners.sae);
      const turned = partners.sign[place] < 0;
      const sign = turned ? ", opposite sign" : "";
      const numbers = `cosine ${shown(partners.cosine[place], 3)}${sign}, IoU ${shown(partners.code_iou[place], 3)}`;
      panel(side, `${partners.sae}, latent ${partner}: ${numbers}`, other, partner, turned);
    }
  }

  // what stands side by side is of one kind: a partner of the opposite sign is turned
  function panel(side, title, sae, latent, turned) {
    const box = make("div", null, side);
    make("h3", title, box);
    if (sae === null) return;
    if (sae.neuronpedia_id) {
      make("a", "on Neuronpedia", make("p", null, box), {
        href: `https://www.neuronpedia.org/${sae.neuronpedia_id}/${latent}`,
      });
    }
    const place = sae.place.get(latent);
    const examples = turned ? [...sae.examples[place]].reverse() : sae.examples[place];
    if (sae.promoted) {
      const both = turned ? [...sae.promoted[place]].reverse() : sae.promoted[place];
      const said = both.map((tokens) => tokens.map((t) => t.trim() || "␣").join(" · "));
      const line = make("p", null, box, { class: "promoted" });
      make("span", turned ? "its negative promotes " : "promotes ", line, { class: "plus" });
      line.append(said[0]);
      make("br", null, line);
      make("span", turned ? "its negative suppresses " : "suppresses ", line, { class: "minus" });
      line.append(said[1]);
    }
    if (!examples.length) make("p", "Never active on these activations.", box);
    const list = make("ul", null, box);
    for (const [activation, place] of examples) {
      const item = make("li", null, list, data.images ? { class: "pictured" } : {});
      make("span", activation.toPrecision(3), item, { class: activation < 0 ? "minus" : "plus" });
      if (data.images) {
        item.append(patchAt(place, 112));
        continue;
      }
      if (!data.text) {
        item.append(` sample ${place}`);
        continue;
      }
      const start = place - (place % data.text.size);
      const end = start + data.text.size;
      item.title = words(start, end);
      item.append(" … ", words(Math.max(start, place - BEFORE), place));
      make("mark", token(place), item);
      item.append(words(place + 1, Math.min(end, place + 1 + AFTER)), " …");
    }
  }

  draw();
}
