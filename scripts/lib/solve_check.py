"""Tries to catch solve.py at a wrong "unsat": `scripts/prove` runs it before it believes a proof.

- Random terms of words, storage and hashes, with random values for all that is unknown in them: what is said of them is true of
  those values, so it must not be "unsat". And of exact terms, that they are anything but their value must be.
- Questions whose answers are known, through the program as halmos calls it: wrapping sums, packed words, storage at two places
  that could be one, divisions by zero, and conservation broken by one.
"""

import os
import random
import subprocess
import sys
import tempfile

import z3

import solve
from integers import as_integers

WORDS = 8, 16, 96, 128, 256
EDGES = 0, 1, 2, 2**7, 2**64 - 1, 2**96, 2**128 - 1, 2**128, 2**255, 2**256 - 1


class Guess:
    """Unknown words, truths and storage, and one value for each."""

    def __init__(self, dice):
        self.dice = dice
        self.values = []
        self.words = [self.unknown(z3.BitVec(f"x{i}", width), width) for i, width in enumerate([8, 16, 96, 128, 256, 256])]
        self.arrays = [z3.Array(f"a{i}", z3.BitVecSort(256), z3.BitVecSort(256)) for i in range(2)]
        hashed = z3.Function("f_sha3_256", z3.BitVecSort(256), z3.BitVecSort(256))
        self.hashed = lambda word: hashed(word)
        self.meaning = (hashed, z3.Var(0, z3.BitVecSort(256)) * 3 + 5)
        self.filled = [(a, z3.K(z3.BitVecSort(256), z3.BitVecVal(self.number(256), 256))) for a in self.arrays]

    def number(self, width):
        way = self.dice.random()
        number = self.dice.choice(EDGES) if way < 0.5 else self.dice.getrandbits(width) >> self.dice.randrange(width)
        return number % (1 << width)

    def unknown(self, name, width):
        self.values.append((name, z3.BitVecVal(self.number(width), width)))
        return name

    def value(self, term):
        """Of a term, with these values."""
        term = z3.substitute_funs(term, self.meaning)
        return z3.simplify(z3.substitute(term, *self.values, *self.filled))

    # ── Terms ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def sized(self, term, width):
        if term.size() > width:
            low = self.dice.randrange(term.size() - width + 1)
            return z3.Extract(low + width - 1, low, term)
        extend = self.dice.choice([z3.ZeroExt, z3.ZeroExt, z3.SignExt])
        return extend(width - term.size(), term) if term.size() < width else term

    def constant(self, width):
        return z3.BitVecVal(self.number(width), width)

    def word(self, width, depth, exact):
        dice = self.dice
        if depth <= 0:
            return self.sized(dice.choice(self.words), width) if dice.random() < 0.8 else self.constant(width)
        a, b = (self.word(width, depth - 1, exact) for _ in range(2))
        small = z3.BitVecVal(dice.choice([1, 3, 10_000, 2**64 - 1]) % 2**width or 1, width)
        ways = [
            lambda: a + b,
            lambda: a - b,
            lambda: a + b - self.word(width, depth - 1, exact),
            lambda: -a,
            lambda: ~a,
            lambda: a * self.constant(width),
            lambda: a * z3.If(self.truth(depth - 1, exact), z3.BitVecVal(1, width), z3.BitVecVal(0, width)),
            lambda: z3.If(self.truth(depth - 1, exact), a, b),
            lambda: z3.UDiv(a, small),
            lambda: z3.URem(a, small),
            lambda: a << dice.randrange(width),
            lambda: z3.LShR(a, dice.randrange(width)),
            lambda: a & self.constant(width),
            lambda: a + (b << width // 2) - b,
            lambda: self.packed(width, depth, exact),
        ]
        if not exact:
            ways += [
                lambda: a * b,
                lambda: a & b,
                lambda: a | b,
                lambda: a | b | (a ^ b),
                lambda: z3.If((a ^ b) | (b ^ self.word(width, 0, exact)) == 0, a, b),
                lambda: a ^ b,
                lambda: z3.UDiv(a, b),
                lambda: a << b,
                lambda: self.sized(self.stored(depth), width),
                lambda: self.sized(self.hashed(self.word(256, depth - 1, exact)), width),
            ]
        return dice.choice(ways)()

    def packed(self, width, depth, exact):
        middle = self.dice.randrange(1, width)
        sizes = (width - middle, middle)
        return z3.Concat(*(self.sized(self.word(self.dice.choice(WORDS), depth - 1, exact), size) for size in sizes))

    def stored(self, depth):
        storage = self.dice.choice(self.arrays)
        for _ in range(self.dice.randrange(3)):
            storage = z3.Store(storage, self.word(256, depth - 1, False), self.word(256, depth - 1, False))
        return z3.Select(storage, self.word(256, depth - 1, False))

    def truth(self, depth, exact):
        dice = self.dice
        if depth > 1 and dice.random() < 0.2:
            a, b = (self.truth(depth - 1, exact) for _ in range(2))
            return dice.choice([z3.And(a, b), z3.Or(a, b), z3.Not(a), z3.Xor(a, b), z3.Implies(a, b), a == b])
        width = dice.choice(WORDS)
        a, b = (self.word(width, depth - 1, exact) for _ in range(2))
        return dice.choice([z3.ULE(a, b), z3.ULT(a, b), z3.UGE(a, b), z3.UGT(a, b), a <= b, a < b, a == b, a != b])


def is_unsat(assertions, work):
    solver = z3.SolverFor("QF_LIA")
    # A measure of work, not of time: what is found must not depend on what else the machine does.
    solver.set("rlimit", work)
    solver.add(as_integers(assertions))
    return solver.check() == z3.unsat


def random_terms(seed, count):
    """How many of the exact ones were told from anything but their value."""
    dice = random.Random(seed)
    told = exact_ones = 0
    for round_ in range(count):
        guess = Guess(dice)
        exact = round_ % 2 == 0
        term = guess.word(dice.choice(WORDS), 2, exact)
        value = guess.value(term)
        assert z3.is_bv_value(value), value
        pinned = [name == value for name, value in guess.values]
        said = [t if z3.is_true(guess.value(t)) else z3.Not(t) for t in (guess.truth(2, exact) for _ in range(3))]
        for known, work in (([], 20_000), (pinned, 100_000)):
            true = solve.weaken([*known, *said, term == value])
            assert not is_unsat(true, work), f"what is true of {guess.values} was found not to be:\n{[*said, term == value]}"
        if exact:
            exact_ones += 1
            told += is_unsat(solve.weaken([*pinned, term != value]), 100_000)
    return told, exact_ones


# ── Known answers ───────────────────────────────────────────────────────────────────────────────────────────────────────

HEAD = """(set-logic QF_AUFBV)
(declare-fun slot () (Array (_ BitVec 256) (_ BitVec 256)))
(declare-fun then () (Array (_ BitVec 256) (_ BitVec 256)))
(declare-fun a () (_ BitVec 256)) (declare-fun b () (_ BitVec 256)) (declare-fun c () (_ BitVec 256))
(declare-fun f_sha3_256 ((_ BitVec 256)) (_ BitVec 256))
(declare-fun f_evm_bvudiv_256 ((_ BitVec 256) (_ BitVec 256)) (_ BitVec 256))
(declare-fun f_evm_bvmul_256 ((_ BitVec 256) (_ BitVec 256)) (_ BitVec 256))
(define-fun high ((w (_ BitVec 256))) (_ BitVec 256) (bvlshr w (_ bv128 256)))
(define-fun low ((w (_ BitVec 256))) (_ BitVec 256) (concat (_ bv0 128) ((_ extract 127 0) w)))
(define-fun move ((w (_ BitVec 256)) (n (_ BitVec 256))) (_ BitVec 256) (bvsub (bvadd w (bvshl n (_ bv128 256))) n))
"""
KNOWN = [
    # A sum wraps.
    ("sat", "(bvult (bvadd a b) a)"),
    ("unsat", "(bvult a (_ bv9 256)) (bvult b (_ bv9 256)) (bvult (bvadd a b) a)"),
    # A member of a packed word moves to the other: what it is worth stays, unless the members overflow.
    ("unsat", "(bvule c (low a)) (bvult (bvadd (high a) c) (bvshl (_ bv1 256) (_ bv128 256)))"
              "(not (= (bvadd (high (move a c)) (low (move a c))) (bvadd (high a) (low a))))"),
    ("sat", "(bvule c (low a)) (not (= (bvadd (high (move a c)) (low (move a c))) (bvadd (high a) (low a))))"),
    ("sat", "(bvult (bvadd (high a) c) (bvshl (_ bv1 256) (_ bv128 256)))"
            "(not (= (bvadd (high (move a c)) (low (move a c))) (bvadd (high a) (low a))))"),
    # One is lost on the way.
    ("sat", "(bvule c (low a)) (bvult (bvadd (high a) c) (bvshl (_ bv1 256) (_ bv128 256)))"
            "(not (= (bvadd (high (move a c)) (low (move a c))) (bvadd (high a) (low a) (_ bv1 256))))"),
    # Storage, at two places that could be one.
    ("sat", "(= then (store slot a b)) (not (= (select then c) (select slot c)))"),
    ("unsat", "(= then (store slot a b)) (not (= a c)) (not (= (select then c) (select slot c)))"),
    ("unsat", "(= then (store slot a b)) (not (= (select then a) b))"),
    ("sat", "(= then (store (store slot a b) c a)) (not (= (select then a) b))"),
    # Hashes: the same of the same; of others, whatever.
    ("unsat", "(= a (bvadd b c)) (not (= (f_sha3_256 a) (f_sha3_256 a)))"),
    ("unsat", "(not (= (f_sha3_256 (bvadd b c)) (f_sha3_256 (bvadd c b))))"),
    ("sat", "(= (f_sha3_256 a) (f_sha3_256 b)) (not (= a b))"),
    # Divisions: rounded down; by zero, whatever.
    ("unsat", "(= b (f_evm_bvudiv_256 a (_ bv10000 256))) (bvugt b a)"),
    ("sat", "(= b (f_evm_bvudiv_256 a (_ bv10000 256))) (not (= a (bvmul b (_ bv10000 256))))"),
    ("sat", "(bvugt (f_evm_bvudiv_256 a (_ bv0 256)) a)"),
    ("unsat", "(not (= (f_evm_bvmul_256 (ite (bvult a b) (_ bv1 256) (_ bv0 256)) c) (ite (bvult a b) c (_ bv0 256))))"),
    ("sat", "(= c (f_evm_bvmul_256 (ite (bvult a b) (_ bv1 256) (_ bv0 256)) a)) (not (= a c))"),
    # Signs.
    ("sat", "(bvslt a b) (bvugt a b)"),
    ("unsat", "(bvslt a b) (bvugt a b) (bvult a (bvshl (_ bv1 256) (_ bv255 256)))"),
]


def known_answers():
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "solve.py")
    for expected, assertions in KNOWN:
        with tempfile.NamedTemporaryFile("w", suffix=".smt2") as query:
            # Each assertion by itself, as halmos asks.
            query.write(HEAD + "".join(f"(assert {a})\n" for a in split(assertions)) + "(check-sat)\n(get-model)\n")
            query.flush()
            asked = subprocess.run([sys.executable, program, query.name], stdout=subprocess.PIPE, text=True, check=True)
            told = asked.stdout.split("\n", 1)[0]
        assert told == expected, f"{told}, not {expected}: {assertions}"


def split(text):
    depth = start = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and letter == ")":
            yield text[start : at + 1].strip()
            start = at + 1


if __name__ == "__main__":
    sys.setrecursionlimit(100_000)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    known_answers()
    told, exact = random_terms(rounds, rounds)
    assert told >= exact * 0.9, f"only {told} of {exact} terms were told from what they are not"
    print(f"{len(KNOWN)} known answers and {rounds} random terms: the solver is as it should be")
