"use strict";
// Everything a model wrote is set with textContent, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE_OF = 200; // problems shown at once
const place = (id) => document.getElementById(id);
const text = (number) => (number === null || number === undefined ? null : data.texts[number]);

function make(tag, properties, ...children) {
  const { className, ...attributes } = properties || {};
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const state = { benchmark: 0, search: "", group: "all", verdicts: [], only: null, shown: PAGE_OF };
const current = () => data.benchmarks[state.benchmark];

// The outcome of one model's samples for one problem.
function outcome(answer) {
  if (!answer) return "none";
  if (!answer.graded) return "infrastructure_error";
  if (answer.passed === answer.graded) return "pass";
  if (answer.passed) return "some";
  return answer.samples.every((sample) => sample.plus === "timeout") ? "timeout" : "fail";
}

const NAMES = {
  pass: "✓ pass", fail: "✗ fail", timeout: "✗ timeout", some: "◐ some", infrastructure_error: "? not graded",
  none: "– not asked",
};
const tone = (verdict) => ({ pass: "pass", fail: "fail", timeout: "fail", none: "none" })[verdict] || "other";

function chip(verdict, label) {
  return make("span", { className: `chip ${tone(verdict)}` }, label || NAMES[verdict] || verdict);
}

function answerChip(model, answer) {
  const result = outcome(answer);
  const share = answer && answer.all > 1 ? ` ${answer.passed}/${answer.graded}` : "";
  const short = chip(result, `${NAMES[result]}${share} ${model.name}`);
  short.title = model.name;
  return short;
}

// ── summary ──
function showSummary() {
  const { models, pairs, extended, problems } = current();
  const header = extended ? ["pass@1 %", "base tests", "base and extended tests"] : ["pass@1 %", "tests"];
  const scores = make("table", {}, make("tr", {}, ...header.map((name) => make("th", {}, name))),
    ...models.map((model) => make("tr", {}, make("td", {}, model.name),
      ...(extended ? [model.base, model.plus] : [model.plus]).map((rate) => make("td", {}, rate)))));
  const parts = [make("div", {}, make("h2", {}, `${problems.length} problems`), scores,
    make("p", { className: "note" }, "In brackets: 95% confidence interval."))];
  if (pairs.length) parts.push(pairTable(pairs, models));
  place("summary").replaceChildren(...parts);
}

function pairTable(pairs, models) {
  const single = pairs.every((pair) => pair.test.startsWith("McNemar"));
  const rows = pairs.map((pair) => {
    const only = (ids, better, worse) => make("button", { type: "button", title: "show these problems", onclick: () =>
      showOnly(ids, single ? `solved by ${better}, not by ${worse}` : `solved more often by ${better} than by ${worse}`),
    }, String(ids.length));
    const [first, second] = [models[pair.first].name, models[pair.second].name];
    return make("tr", {}, make("td", {}, `${first} against ${second}`),
      make("td", {}, pair.difference), make("td", {}, only(pair.better_on, first, second)),
      make("td", {}, only(pair.worse_on, second, first)),
      ...[pair.both, pair.neither, pair.p].map((value) => make("td", {}, String(value))));
  });
  const header = ["", "difference, points", single ? "only the first" : "first better",
    single ? "only the second" : "second better", "both", "neither", "p"];
  const tests = [...new Set(pairs.map((pair) => pair.test))].join(", ");
  return make("div", {}, make("h2", {}, "Model against model"),
    make("table", {}, make("tr", {}, ...header.map((name) => make("th", {}, name))), ...rows),
    make("p", { className: "note" }, `p: two-sided, ${tests}. Click a number to see its problems.`));
}

function showOnly(ids, label) {
  state.only = { ids: new Set(ids), label };
  state.shown = PAGE_OF;
  showProblems();
  place("count").scrollIntoView({ block: "center" });
}

// ── filters ──
function choice(label, options, value, change) {
  return make("label", {}, make("span", { title: label }, label), make("select", { onchange: (event) => {
    change(event.target.value);
    filtersChanged();
  } }, ...options.map(([name, shown]) => make("option", { value: name, selected: name === value }, shown))));
}

function filtersChanged() {
  state.only = null;
  state.shown = PAGE_OF;
  showProblems();
}

function showFilters() {
  const { models } = current();
  state.verdicts = models.map(() => "any");
  const groups = [["all", "all problems"], ["disagree", "models disagree"], ["every", "solved by every model"],
    ["nobody", "solved by no model"]];
  const verdicts = [["any", "any verdict"], ["pass", "pass"], ["some", "some samples pass"], ["not", "not solved"],
    ["timeout", "timeout"], ["cut", "answer cut off"], ["infrastructure_error", "not graded"]];
  place("filters").replaceChildren(
    make("label", {}, make("span", {}, "Search in ids, answers, details"), make("input", {
      type: "search", placeholder: "HumanEval/32", value: state.search,
      oninput: (event) => { state.search = event.target.value; filtersChanged(); } })),
    models.length > 1 ? choice("Problems", groups, state.group, (value) => { state.group = value; }) : null,
    ...models.map((model, index) => choice(model.name, verdicts, "any", (value) => { state.verdicts[index] = value; })));
}

function fits(answer, wanted) {
  const result = outcome(answer);
  if (wanted === "any") return true;
  if (wanted === "not") return ["fail", "timeout"].includes(result);
  if (wanted === "timeout") return Boolean(answer) && answer.samples.some((sample) => sample.plus === "timeout");
  if (wanted === "cut") return Boolean(answer) && answer.samples.some((sample) => sample.finish === "length");
  return result === wanted;
}

function inGroup(problem) {
  const results = problem.answers.map(outcome);
  if (state.group === "disagree") return new Set(results.map((result) => (result === "timeout" ? "fail" : result))).size > 1;
  if (state.group === "every") return results.every((result) => result === "pass");
  if (state.group === "nobody") return results.every((result) => !["pass", "some"].includes(result));
  return true;
}

function mentions(problem, search) {
  if (problem.id.toLowerCase().includes(search)) return true;
  return problem.answers.some((answer) => answer && answer.samples.some((sample) =>
    [sample.completion, sample.program, sample.detail].some((number) => (text(number) || "").toLowerCase().includes(search))));
}

function found() {
  const search = state.search.trim().toLowerCase();
  return current().problems.filter((problem) => (!state.only || state.only.ids.has(problem.id)) && inGroup(problem) &&
    problem.answers.every((answer, index) => fits(answer, state.verdicts[index])) && (!search || mentions(problem, search)));
}

// ── problems ──
function showProblems() {
  const list = found();
  const label = [`${list.length} of ${current().problems.length} problems`];
  if (state.only) {
    label.push(`: ${state.only.label} `, make("button", { type: "button", onclick: filtersChanged }, "show all again"));
  }
  place("count").replaceChildren(...label);
  const rest = list.length - state.shown;
  place("problems").replaceChildren(...list.slice(0, state.shown).map(problemRow), ...(rest > 0 ? [make("button", {
    id: "more", type: "button", onclick: () => { state.shown += PAGE_OF; showProblems(); } }, `${rest} more`)] : []));
  if (list.length === 1) place("problems").querySelector(".head").click();
}

function problemRow(problem) {
  const { models } = current();
  const head = make("button", { className: "head", type: "button", "aria-expanded": "false", onclick: () => {
    const open = head.getAttribute("aria-expanded") === "true";
    head.setAttribute("aria-expanded", String(!open));
    if (open) row.lastChild.remove();
    else row.append(make("div", { className: "columns" },
      ...models.map((model, index) => column(model, problem.answers[index]))));
  } }, make("span", { className: "id" }, problem.id), ...models.map((model, index) => answerChip(model, problem.answers[index])));
  const row = make("article", { className: "problem" }, head);
  return row;
}

function column(model, answer) {
  const box = make("div", { className: "column" });
  const show = (index) => box.replaceChildren(...columnContent(model, answer, index, show));
  show(0);
  return box;
}

function columnContent(model, answer, index, show) {
  if (!answer) return [make("h2", {}, model.name), make("p", { className: "note" }, "This model was not asked.")];
  const sample = answer.samples[index];
  const verdicts = current().extended && sample.base !== sample.plus
    ? [chip(sample.base, `base: ${sample.base}`), chip(sample.plus, `base and extended: ${sample.plus}`)]
    : [chip(sample.plus, sample.plus)];
  if (sample.finish === "length") verdicts.push(chip("cut", `cut off after ${sample.tokens} tokens`));
  if (sample.finish === "prompt_too_long") verdicts.push(chip("cut", "prompt too long"));
  const parts = [make("h2", {}, make("span", {}, model.name), ...verdicts)];
  if (answer.samples.length > 1) {
    parts.push(make("div", { className: "samples" }, ...answer.samples.map((other, number) => make("button", {
      type: "button", className: tone(other.plus), "aria-pressed": String(number === index), onclick: () => show(number),
    }, `#${number}`)), answer.all > answer.samples.length ? make("span", { className: "note" }, `of ${answer.all}`) : null));
  }
  if (text(sample.detail)) {
    parts.push(make("div", { className: "label" }, "What went wrong"), make("pre", { className: "detail" }, text(sample.detail)));
  }
  const written = text(sample.completion) !== null;
  parts.push(make("div", { className: "label" }, written ? "What the model wrote" : "Graded program"),
    make("pre", {}, (written ? text(sample.completion) : text(sample.program)) || "(nothing)"));
  if (written && text(sample.program) !== null) parts.push(folded("Graded program", text(sample.program)));
  if (text(sample.prompt) !== null) parts.push(folded("Prompt", text(sample.prompt)));
  return parts;
}

function folded(label, content) {
  return make("details", {}, make("summary", {}, label), make("pre", {}, content));
}

// ── start ──
function showBenchmark(index) {
  state.benchmark = index;
  state.only = null;
  state.shown = PAGE_OF;
  place("benchmarks").replaceChildren(...data.benchmarks.map((benchmark, number) => make("button", {
    type: "button", "aria-current": number === index ? "true" : null, onclick: () => showBenchmark(number) }, benchmark.title)));
  if (!data.benchmarks.length) {
    place("count").replaceChildren("Nothing was evaluated.");
    return;
  }
  showSummary();
  showFilters();
  showProblems();
}

// problems.html#HumanEval/32 shows that problem.
function showAddressed() {
  const id = decodeURIComponent(location.hash.slice(1));
  const index = data.benchmarks.findIndex((benchmark) => benchmark.problems.some((problem) => problem.id === id));
  showBenchmark(Math.max(index, 0));
  if (index >= 0) showOnly([id], "named in the address");
}

place("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", showAddressed);
showAddressed();
