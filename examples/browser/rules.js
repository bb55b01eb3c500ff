// Sudoku without a network: reading, the rules, and the copies of a puzzle that symmetries make.
// A grid is an array of size * size digits, row by row, 0 for a blank.

/** Height and width of a box: 3 and 3 for 9 rows, 2 and 3 for 6. */
export function boxShape(size) {
  let rows = Math.floor(Math.sqrt(size));
  while (size % rows) rows -= 1;
  return [rows, size / rows];
}

/** Read a puzzle; frames and white space around its cells do not count. */
export function parse(text, size) {
  const cells = [];
  for (const sign of text) {
    if (".0_*".includes(sign)) cells.push(0);
    else if (sign >= "1" && sign <= "9") cells.push(Number(sign));
  }
  if (cells.length !== size * size) {
    throw new Error(
      `${cells.length} cells found, and a puzzle has ${size * size}: a digit each, . or 0 for a blank`,
    );
  }
  const large = cells.findIndex((digit) => digit > size);
  if (large >= 0) throw new Error(`${cells[large]} is no digit here; they are 1 to ${size}`);
  return cells;
}

export function format(grid) {
  return grid.map((digit) => digit || ".").join("");
}

/** The rows, columns and boxes of a grid: a name and cells each. */
function units(size) {
  const [height, width] = boxShape(size);
  const found = [];
  const numbers = [...Array(size).keys()];
  for (const i of numbers) {
    found.push([`row ${i + 1}`, numbers.map((j) => i * size + j)]);
    found.push([`column ${i + 1}`, numbers.map((j) => j * size + i)]);
    const top = Math.floor(i / (size / width)) * height;
    const side = (i % (size / width)) * width;
    const inBox = (j) => (top + Math.floor(j / width)) * size + side + (j % width);
    found.push([`box ${i + 1}`, numbers.map(inBox)]);
  }
  return found;
}

/** Give what breaks a rule: texts, and the cells. */
export function conflicts(grid, size) {
  const texts = [];
  const cells = new Set();
  for (const [name, unit] of units(size)) {
    for (let digit = 1; digit <= size; digit += 1) {
      const having = unit.filter((cell) => grid[cell] === digit);
      if (having.length > 1) {
        texts.push(`${name} has ${digit} more than once`);
        having.forEach((cell) => cells.add(cell));
      }
    }
  }
  return { texts, cells };
}

/** Whether an answer is full, keeps the givens and breaks no rule. */
export function accepts(answer, puzzle, size) {
  const full = answer.every((digit) => digit >= 1 && digit <= size);
  const kept = puzzle.every((digit, cell) => !digit || digit === answer[cell]);
  return full && kept && conflicts(answer, size).texts.length === 0;
}

function shuffled(count) {
  const order = [...Array(count).keys()];
  for (let i = count - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** An order of rows that keeps each band of `box` rows together. */
function shuffledLines(size, box) {
  return shuffled(size / box).flatMap((band) => shuffled(box).map((line) => band * box + line));
}

/** No symmetry: each cell and digit stays. */
export function identity(size) {
  return { cells: [...Array(size * size).keys()], digits: [...Array(size + 1).keys()] };
}

/** Draw a symmetry of Sudoku: other digits, other lines, and perhaps rows for columns. */
export function randomSymmetry(size) {
  const [height, width] = boxShape(size);
  const rows = shuffledLines(size, height);
  const columns = shuffledLines(size, width);
  const turn = height === width && Math.random() < 0.5;
  const cells = [];
  for (const row of rows) {
    for (const column of columns) cells.push(turn ? column * size + row : row * size + column);
  }
  return { cells, digits: [0, ...shuffled(size).map((digit) => digit + 1)] };
}

/** The copy of a grid that a symmetry makes. */
export function apply(symmetry, grid) {
  return symmetry.cells.map((cell) => symmetry.digits[grid[cell]]);
}

/** The grid of which a symmetry made this copy. */
export function undo(symmetry, copy) {
  const back = [];
  symmetry.digits.forEach((to, from) => { back[to] = from; });
  return undoPlaces(symmetry, copy.map((digit) => back[digit] ?? 0));
}

/** Bring numbers of a copy's cells back to the places of the grid's. */
export function undoPlaces(symmetry, numbers) {
  const grid = Array(numbers.length);
  symmetry.cells.forEach((from, to) => { grid[from] = numbers[to]; });
  return grid;
}
