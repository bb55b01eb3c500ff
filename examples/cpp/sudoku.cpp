// Solves a Sudoku with a model that `python -m mlx_trm.export RUN --output model.mlxfn` has written;
// docs/export.md says how to compile this.
//
//   sudoku model.mlxfn PUZZLE [STEPS]
//
// PUZZLE has a digit or a point for each cell, row by row: 81 characters, or 16 for a model of the
// 4x4 task, whose digits are 0 to 4; 0 is a blank cell too. The answer is printed as digits. Without
// STEPS, the number of supervision steps (1 to 1000), the program stops when the model believes its
// answer, after 16 steps at the latest.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/mlx.h"

namespace mx = mlx::core;

// What a step gives before its latents; model.mlxfn.json has the shapes and dtypes.
enum Output { TOKENS, HALT, Q_HALT, Q_CONTINUE, LOGITS, LATENTS };

const int MAX_STEPS = 1000;

// Reads a whole number from 1 to MAX_STEPS, written in digits alone; gives 0 for anything else.
int read_steps(const std::string& text) {
  int steps = 0;
  for (char digit : text) {
    if (digit < '0' || digit > '9') {
      return 0;
    }
    steps = 10 * steps + (digit - '0');
    if (steps > MAX_STEPS) {  // here, before it overflows
      return 0;
    }
  }
  return steps;
}

// Token 0 is padding, 1 a blank cell and 1 + d the digit d. Digits go up to the side length: a model
// has no other tokens, and would take them for something else.
std::vector<int32_t> read_puzzle(const std::string& text) {
  size_t side = 1;
  while ((side + 1) * (side + 1) <= text.size()) {
    ++side;
  }
  // What is no square is refused by its size, not by its digits.
  const char largest = side * side == text.size() ? '0' + std::min<size_t>(side, 9) : '9';
  std::vector<int32_t> tokens;
  for (char cell : text) {
    if (cell == '.') {
      tokens.push_back(1);
    } else if (cell >= '0' && cell <= largest) {
      tokens.push_back(1 + (cell - '0'));
    } else if (cell > largest && cell <= '9') {
      throw std::invalid_argument(
          std::string("a puzzle of ") + std::to_string(text.size()) + " cells has digits up to " +
          largest + ", not " + cell);
    } else {
      throw std::invalid_argument(std::string("a puzzle has digits and points, not '") + cell + "'");
    }
  }
  return tokens;
}

std::string write_answer(const mx::array& tokens) {
  std::string text;
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i) {
    int32_t token = tokens.data<int32_t>()[i];
    text += token == 1 ? '.' : token > 1 && token < 11 ? static_cast<char>('0' + token - 1) : '?';
  }
  return text;
}

std::string solve(const std::string& file, const std::string& puzzle, int steps, bool until_halt) {
  auto step = mx::import_function(file);
  auto tokens = read_puzzle(puzzle);
  mx::array inputs(tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
  mx::array identifiers = mx::zeros({1}, mx::int32);  // a Sudoku has no row in the puzzle table

  // The first call takes the puzzle alone, each further call also the latents that it last gave.
  std::vector<mx::array> outputs;
  try {
    outputs = step({inputs, identifiers});
  } catch (const std::invalid_argument&) {  // MLX's message lists the shapes that there are
    throw std::invalid_argument(
        file + " takes no single puzzle of " + std::to_string(tokens.size()) + " cells");
  }
  mx::eval(outputs);
  for (int taken = 1; taken < steps; ++taken) {
    if (until_halt && outputs[HALT].item<bool>()) {
      break;
    }
    std::vector<mx::array> arguments = {inputs, identifiers};
    arguments.insert(arguments.end(), outputs.begin() + LATENTS, outputs.end());
    outputs = step(arguments);
    mx::eval(outputs);
  }
  // Row-contiguous, so that its data can be read in order.
  mx::array answer = mx::contiguous(outputs[TOKENS]);
  mx::eval(answer);
  return write_answer(answer);
}

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: " << argv[0] << " model.mlxfn PUZZLE [STEPS]\n";
    return 2;
  }
  int steps = argc == 4 ? read_steps(argv[3]) : 16;
  if (steps < 1) {
    std::cerr << "STEPS must be a whole number from 1 to " << MAX_STEPS << ", not " << argv[3] << "\n";
    return 2;
  }
  try {
    std::cout << solve(argv[1], argv[2], steps, argc == 3) << "\n";
    return 0;
  } catch (const std::exception& error) {  // no such file, or a puzzle of another size
    std::cerr << error.what() << "\n";
    return 2;
  }
}
