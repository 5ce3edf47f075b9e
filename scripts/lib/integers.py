"""Words as integers: what a query of words says, or less, in linear arithmetic.

A word is a sum of integer variables times constants, over and above which nothing is modular: adding, subtracting and shifting
by constants stay sums. Where a sum is cut into bits (it wraps, a member of a packed word is read, a product is divided) the
part below the cut overflows into the part above by a carry: a variable of its own with a small range, mostly zero or one. So
members of packed words stay apart, and solvers have little more to guess than the carries.

Every model of the query is, with the carries it has, one of the integers' formula: "unsat" of that is "unsat" of the query. What is
not linear becomes a variable of which at most is said what always holds. `selfcheck.py` tries that out on random terms.
"""

import z3


class Sum:
    """`constant` plus the sum of coefficient times variable; variables are numbers that `Integers` gives out."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms=None, constant=0):
        self.terms = terms or {}
        self.constant = constant

    def plus(self, other, factor=1):
        terms = dict(self.terms)
        for variable, coefficient in other.terms.items():
            total = terms.get(variable, 0) + coefficient * factor
            if total:
                terms[variable] = total
            else:
                terms.pop(variable, None)
        return Sum(terms, self.constant + other.constant * factor)

    def times(self, factor):
        return Sum().plus(self, factor)

    def key(self):
        return (frozenset(self.terms.items()), self.constant)


def symmetric(number, modulus):
    """The number of the same residue that is nearest to zero."""
    rest = number % modulus
    return rest - modulus if 2 * rest > modulus else rest


class Integers:
    def __init__(self, assertions):
        self.ranges = []
        self.variables = []
        self.facts = []
        self.memory = {}
        self.kept = []
        self.cuts = {}
        for assertion in assertions:
            self.find_cuts(assertion)
        self.facts += [self.truth(a) for a in assertions]

    # ── Variables and sums ──────────────────────────────────────────────────────────────────────────────────────────

    def variable(self, low, high):
        if low == high:
            return Sum({}, low)
        number = len(self.variables)
        unknown = z3.Int(f"i{number}")
        self.variables.append(unknown)
        self.ranges.append((low, high))
        self.facts += [unknown >= low, unknown <= high]
        return Sum({number: 1})

    def range(self, total):
        low = high = total.constant
        for variable, coefficient in total.terms.items():
            ends = [coefficient * end for end in self.ranges[variable]]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def value(self, total):
        parts = [self.variables[v] * c for v, c in sorted(total.terms.items())]
        return z3.Sum([*parts, z3.IntVal(total.constant)])

    def cut(self, total, at):
        """`total` as (quotient, remainder) by 2^at."""
        power = 1 << at
        low = Sum({v: r for v, c in total.terms.items() if (r := symmetric(c, power))}, symmetric(total.constant, power))
        high = total.plus(low, -1)
        high = Sum({v: c >> at for v, c in high.terms.items()}, high.constant >> at)
        least, most = (end >> at for end in self.range(low))
        if least == most == 0:
            return high, low
        key = ("carry", low.key(), at)
        if key not in self.memory:
            self.memory[key] = carry = self.variable(least, most)
            rest = self.value(low.plus(carry, -power))
            self.facts += [rest >= 0, rest < power]
        carry = self.memory[key]
        return high.plus(carry), low.plus(carry, -power)

    def wrap(self, total, width):
        return self.cut(total, width)[1]

    def chosen(self, condition, one, other):
        """One sum or the other."""
        if one.key() == other.key():
            return one
        key = ("chosen", condition.get_id(), one.key(), other.key())
        if key not in self.memory:
            self.kept.append(condition)
            (a, b), (c, d) = self.range(one), self.range(other)
            chosen = self.variable(min(a, c), max(b, d))
            value = self.value(chosen)
            self.facts.append(z3.If(condition, value == self.value(one), value == self.value(other)))
            self.memory[key] = chosen
        return self.memory[key]

    def zero(self, total):
        """That a sum is zero: member by member where nothing can carry from one to the next."""
        low, high = self.range(total)
        if low > 0 or high < 0:
            return z3.BoolVal(False)
        for at in sorted({(c & -c).bit_length() - 1 for c in total.terms.values()})[1:]:
            power = 1 << at
            below = Sum({v: r for v, c in total.terms.items() if (r := symmetric(c, power))}, symmetric(total.constant, power))
            low, high = self.range(below)
            if -power < low and high < power:
                above = total.plus(below, -1)
                above = Sum({v: c >> at for v, c in above.terms.items()}, above.constant >> at)
                return z3.And(self.zero(below), self.zero(above))
        return self.value(total) == 0

    # ── Where words are cut ─────────────────────────────────────────────────────────────────────────────────────────

    def find_cuts(self, term):
        """Notes at which bits variables are read, so that they are cut there from the start."""
        key = ("seen", term.get_id())
        if key in self.memory:
            return
        self.memory[key] = True
        self.kept.append(term)
        if z3.is_app_of(term, z3.Z3_OP_EXTRACT):
            high, low = term.params()
            for at in (low, high + 1):
                self.cut_at(term.arg(0), at)
        for child in term.children():
            self.find_cuts(child)

    def cut_at(self, term, at):
        key = ("cut", term.get_id(), at)
        if key in self.memory or not 0 < at < term.size():
            return
        self.memory[key] = True
        self.kept.append(term)
        kind = term.decl().kind()
        if z3.is_const(term):
            self.cuts.setdefault(term.get_id(), set()).add(at)
        elif kind == z3.Z3_OP_CONCAT:
            for child, below in self.members(term):
                self.cut_at(child, at - below)
        elif kind == z3.Z3_OP_EXTRACT:
            self.cut_at(term.arg(0), at + term.params()[1])
        else:
            for child in term.children():
                if z3.is_bv(child):
                    self.cut_at(child, at)

    @staticmethod
    def members(concatenation):
        below = concatenation.size()
        for child in concatenation.children():
            below -= child.size()
            yield child, below

    # ── Words ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def word(self, term):
        """A sum that is what the word is as an unsigned number."""
        key = ("word", term.get_id())
        if key not in self.memory:
            self.kept.append(term)
            self.memory[key] = self.translate(term)
        return self.memory[key]

    def unknown(self, term):
        return self.variable(0, (1 << term.size()) - 1)

    def translate(self, term):
        width = term.size()
        kind = term.decl().kind()
        if z3.is_bv_value(term):
            return Sum({}, term.as_long())
        if kind == z3.Z3_OP_UNINTERPRETED and term.num_args() == 0:
            return self.fields(term)
        if kind == z3.Z3_OP_CONCAT:
            total = Sum()
            for child, below in self.members(term):
                total = total.plus(self.word(child), 1 << below)
            return total
        if kind == z3.Z3_OP_EXTRACT:
            high, low = term.params()
            return self.extract(term.arg(0), high, low)
        if kind == z3.Z3_OP_ZERO_EXT:
            return self.word(term.arg(0))
        if kind == z3.Z3_OP_ITE:
            condition, one, other = term.children()
            return self.chosen(self.truth(condition), self.word(one), self.word(other))
        if kind == z3.Z3_OP_BADD:
            total = Sum()
            for child in term.children():
                total = total.plus(self.word(child))
            return self.wrap(total, width)
        if kind == z3.Z3_OP_BSUB:
            total, *others = [self.word(child) for child in term.children()]
            for other in others:
                total = total.plus(other, -1)
            return self.wrap(total, width)
        if kind == z3.Z3_OP_BNEG:
            return self.wrap(self.word(term.arg(0)).times(-1), width)
        if kind == z3.Z3_OP_BNOT:
            return Sum({}, (1 << width) - 1).plus(self.word(term.arg(0)), -1)
        if kind == z3.Z3_OP_BMUL:
            return self.product(term)
        if kind in (z3.Z3_OP_BUDIV, z3.Z3_OP_BUDIV_I, z3.Z3_OP_BUREM, z3.Z3_OP_BUREM_I):
            return self.divided(term, kind in (z3.Z3_OP_BUDIV, z3.Z3_OP_BUDIV_I))
        if kind in (z3.Z3_OP_BAND, z3.Z3_OP_BOR, z3.Z3_OP_BXOR):
            return self.bitwise(term, kind)
        return self.unknown(term)

    def fields(self, variable):
        ends = [0, *sorted(self.cuts.get(variable.get_id(), ())), variable.size()]
        total = Sum()
        for low, high in zip(ends, ends[1:]):
            total = total.plus(self.variable(0, (1 << (high - low)) - 1), 1 << low)
        return total

    def extract(self, term, high, low):
        if z3.is_app_of(term, z3.Z3_OP_ITE):
            condition, one, other = term.children()
            return self.chosen(self.truth(condition), self.extract(one, high, low), self.extract(other, high, low))
        above, _ = self.cut(self.word(term), low)
        return above if high + 1 == term.size() else self.cut(above, high + 1 - low)[1]

    def product(self, term):
        width = term.size()
        factor, others = 1, []
        for child in term.children():
            word = self.word(child)
            if word.terms:
                others.append((child, word))
            else:
                factor *= word.constant
        factor = symmetric(factor, 1 << width)
        if factor == 0 or not others:
            return self.wrap(Sum({}, factor if not others else 0), width)
        if len(others) == 1:
            return self.wrap(others[0][1].times(factor), width)
        if len(others) == 2:
            for (child, _), (_, word) in (others, reversed(others)):
                if z3.is_app_of(child, z3.Z3_OP_ITE) and all(z3.is_bv_value(c) for c in child.children()[1:]):
                    ways = [self.wrap(word.times(symmetric(c.as_long() * factor, 1 << width)), width) for c in child.children()[1:]]
                    return self.chosen(self.truth(child.arg(0)), *ways)
        return self.unknown(term)

    def divided(self, term, quotient):
        number, by = (self.word(child) for child in term.children())
        if by.terms or by.constant == 0:
            return self.unknown(term)
        key = ("divided", number.key(), by.constant)
        if key not in self.memory:
            low, high = self.range(number)
            whole = self.variable(low // by.constant, high // by.constant)
            rest = self.value(number.plus(whole, -by.constant))
            self.facts += [rest >= 0, rest < by.constant]
            self.memory[key] = whole
        whole = self.memory[key]
        return whole if quotient else number.plus(whole, -by.constant)

    def bitwise(self, term, kind):
        parts = term.children()
        if kind == z3.Z3_OP_BAND and len(parts) == 2:
            for one, other in (parts, reversed(parts)):
                if z3.is_bv_value(other):
                    return self.masked(one, other.as_long())
        result = self.unknown(term)
        value = self.value(result)
        words = [self.word(part) for part in parts]
        values = [self.value(word) for word in words]
        if kind == z3.Z3_OP_BAND:
            self.facts += [value <= v for v in values]
            if all(self.range(word)[1] <= 1 for word in words):
                self.facts.append(value >= z3.Sum(values) - (len(values) - 1))
            return result
        if kind == z3.Z3_OP_BOR:
            self.facts += [value >= v for v in values]
        elif len(parts) == 2:
            self.facts.append((value == 0) == self.zero(words[0].plus(words[1], -1)))
        self.facts.append(value <= z3.Sum(values))
        return result

    def masked(self, term, mask):
        """The bits of the mask, run by run."""
        total = Sum()
        low = 0
        while mask >> low:
            if mask >> low & 1:
                high = low
                while mask >> (high + 1) & 1:
                    high += 1
                total = total.plus(self.extract(term, high, low), 1 << low)
                low = high
            low += 1
        return total

    # ── Truths ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def truth(self, term):
        key = ("truth", term.get_id())
        if key not in self.memory:
            self.kept.append(term)
            self.memory[key] = self.said(term)
        return self.memory[key]

    def said(self, term):
        kind = term.decl().kind()
        children = term.children()
        if z3.is_true(term) or z3.is_false(term):
            return term
        if kind == z3.Z3_OP_NOT:
            return z3.Not(self.truth(children[0]))
        if kind == z3.Z3_OP_AND:
            return z3.And([self.truth(c) for c in children])
        if kind == z3.Z3_OP_OR:
            return z3.Or([self.truth(c) for c in children])
        if kind == z3.Z3_OP_IMPLIES:
            return z3.Implies(*[self.truth(c) for c in children])
        if kind == z3.Z3_OP_XOR and len(children) == 2:
            return z3.Xor(*[self.truth(c) for c in children])
        if kind == z3.Z3_OP_ITE:
            return z3.If(*[self.truth(c) for c in children])
        if kind in (z3.Z3_OP_EQ, z3.Z3_OP_IFF) and z3.is_bool(children[0]):
            return self.truth(children[0]) == self.truth(children[1])
        if kind == z3.Z3_OP_EQ and z3.is_bv(children[0]):
            return self.zero(self.word(children[0]).plus(self.word(children[1]), -1))
        if kind == z3.Z3_OP_DISTINCT and len(children) == 2 and z3.is_bv(children[0]):
            return z3.Not(self.zero(self.word(children[0]).plus(self.word(children[1]), -1)))
        if kind in (z3.Z3_OP_ULEQ, z3.Z3_OP_ULT, z3.Z3_OP_UGEQ, z3.Z3_OP_UGT):
            return self.compared(kind, *[self.word(c) for c in children])
        if kind in SIGNED:
            return self.compared(SIGNED[kind], *[self.signed(c) for c in children])
        return z3.Bool(f"b{len(self.kept)}")

    def signed(self, term):
        word, width = self.word(term), term.size()
        return word.plus(self.cut(word, width - 1)[0], -(1 << width))

    def compared(self, kind, one, other):
        difference = other.plus(one, -1)
        low, high = self.range(difference)
        if kind in (z3.Z3_OP_UGEQ, z3.Z3_OP_UGT):
            difference, low, high = difference.times(-1), -high, -low
        least = 1 if kind in (z3.Z3_OP_ULT, z3.Z3_OP_UGT) else 0
        if low >= least or high < least:
            return z3.BoolVal(low >= least)
        return self.value(difference) >= least


SIGNED = {
    z3.Z3_OP_SLEQ: z3.Z3_OP_ULEQ,
    z3.Z3_OP_SLT: z3.Z3_OP_ULT,
    z3.Z3_OP_SGEQ: z3.Z3_OP_UGEQ,
    z3.Z3_OP_SGT: z3.Z3_OP_UGT,
}


def as_integers(assertions):
    """What the assertions, of words and truths only, say of integers."""
    return Integers(assertions).facts
