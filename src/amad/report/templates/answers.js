function showAnswers(run) {
  const body = clear(document.getElementById("answers-body"));
  const found = run.examples;
  if (!found || !found.n) {
    body.append(make("p", { class: "note" }, data.hints.examples));
    return;
  }
  body.append(
    make(
      "p",
      {},
      `On ${count(found.n)} examples, evenly spaced over the validation set, both say the same in ${percent(found.same / found.n)}.`,
    ),
  );
  if (found.table) {
    const { both, teacher, student, neither } = found.table;
    const cell = (n) => `${count(n)} (${percent(n / found.scored)})`;
    if (found.scored < found.n)
      body.append(make("p", {}, `Of ${count(found.scored)} of them it is known what is right:`));
    body.append(
      table(
        ["", "student right", "student wrong"],
        [
          ["teacher right", cell(both), cell(teacher)],
          ["teacher wrong", cell(student), cell(neither)],
        ],
        "Right and wrong answers of both",
      ),
    );
  }
  const titles = found.scored
    ? {
        teacher: "The teacher is better",
        student: "The student is better",
        neither: `They differ, and neither is ${found.scored < found.n ? "known to be " : ""}better`,
      }
    : { neither: "They say different things" };
  for (const [kind, title] of Object.entries(titles)) {
    const { n, rows } = found.differ[kind];
    if (!n) continue;
    body.append(
      make("h3", {}, `${title}: ${count(n)}${n > rows.length ? `, ${rows.length} of them shown` : ""}`),
      make(
        "div",
        { class: "cards" },
        rows.map((row) =>
          make(
            "article",
            { class: "card" },
            row.image
              ? make("img", { src: data.images[row.image], alt: `Image of the example: ${row.text}` })
              : null,
            said(row),
          ),
        ),
      ),
    );
  }
}
