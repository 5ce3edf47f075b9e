"""The solver behind halmos: `solve.py QUERY.smt2`, for `--solver-command`.

The contracts pack amounts into words and add and subtract them there. Solvers that look at bits take hours over whether the
sums come out even; as integers they take milliseconds. So a query is first asked in a weaker form, as integers, of z3, and
only what that leaves open goes to yices as it stands, which also finds the counterexample.

The weaker form follows from the query, so that nothing is proved which the query does not say: what a write to storage leaves
behind is written out, then every hash, storage word and balance becomes a variable, the same term the same variable, and words
become integers (`integers.py`). What is said twice of equal terms that look different is lost by that, nothing is added: "unsat"
of the weaker form is "unsat" of the query. The exception is `interpret`: what halmos leaves open in its first question and says
in its second, namely what a product and a quotient are, is said at once. `solve_check.py` tries to catch it at a wrong "unsat".
"""

import os
import resource
import subprocess
import sys

import z3

from integers import as_integers

SECONDS = int(os.environ.get("PROOF_SECONDS", "30"))


def definitions(assertions):
    """The arrays that are named as a write to another: name -> the write."""
    found = {}
    for a in assertions:
        if z3.is_eq(a) and z3.is_array(a.arg(0)) and z3.is_const(a.arg(0)) and z3.is_store(a.arg(1)):
            found[a.arg(0).get_id()] = a.arg(1)
    return found


def interpret(name, arguments):
    """What halmos' stand-ins for arithmetic mean, where that is linear."""
    if name == "f_evm_bvudiv_256":
        x, y = arguments
        if z3.is_bv_value(y) and y.as_long() != 0:
            return z3.simplify(z3.UDiv(x, y))
    if name == "f_evm_bvmul_256":
        for x, y in (arguments, reversed(arguments)):
            if z3.is_app_of(x, z3.Z3_OP_ITE) and all(z3.is_bv_value(c) and c.as_long() < 2 for c in x.children()[1:]):
                condition, one, other = x.children()
                zero = z3.BitVecVal(0, y.size())
                return z3.If(condition, y if one.as_long() else zero, y if other.as_long() else zero)
    return None


class Weaken:
    def __init__(self, assertions):
        self.defined = definitions(assertions)
        self.done = {}

    def fresh(self, term):
        """A variable by a name that no query has."""
        return z3.FreshConst(term.sort(), "term")

    def read(self, array, index):
        """The word at `index` as it is in arrays that are nobody's write."""
        while True:
            if z3.is_const(array) and array.get_id() in self.defined:
                array = self.defined[array.get_id()]
            elif z3.is_store(array):
                below, at, value = array.children()
                same = z3.simplify(self.term(at) == self.term(index))
                if z3.is_true(same):
                    return self.term(value)
                if not z3.is_false(same):
                    return z3.If(same, self.term(value), self.read(below, index))
                array = below
            else:
                key = (array.get_id(), z3.simplify(self.term(index)).get_id())
                if key not in self.done:
                    # Kept, lest the ids are given to other terms.
                    self.done[key] = self.fresh(array[index])
                    self.done[("kept", *key)] = (array, z3.simplify(self.term(index)))
                return self.done[key]

    def term(self, t):
        key = t.get_id()
        if key in self.done:
            return self.done[key][1]
        if z3.is_select(t):
            result = self.read(*t.children())
        elif z3.is_app(t) and t.num_args() and t.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            children = [self.term(c) for c in t.children()]
            if (known := interpret(t.decl().name(), children)) is not None:
                self.done[key] = (t, known)
                return known
            plain = z3.simplify(t.decl()(*children))
            again = ("of", plain.get_id())
            if again not in self.done:
                self.done[again] = (plain, self.fresh(t))
            result = self.done[again][1]
        elif z3.is_app(t) and t.num_args():
            result = z3.simplify(t.decl()(*[self.term(c) for c in t.children()]))
        else:
            result = t
        self.done[key] = (t, result)
        return result


def weaken(assertions):
    weaker = Weaken(assertions)
    kept = (weaker.term(a) for a in assertions if not (z3.is_eq(a) and z3.is_array(a.arg(0))))
    return [a for a in kept if not z3.is_true(a)]


def unsat_as_integers(facts, seed):
    solver = z3.SolverFor("QF_LIA")
    solver.set("random_seed", seed)
    solver.add(facts)
    return solver.check() == z3.unsat


def limit(seconds):
    """Of the processor, not of the clock: what is proved must not depend on what else the machine does."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def proved(facts, seconds, seed=0):
    """In a process of its own, which may run out of time."""
    child = os.fork()
    if child == 0:
        limit(seconds)
        try:
            os._exit(0 if unsat_as_integers(facts, seed) else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


def as_it_stands(path, seconds):
    yices = os.path.join(os.path.dirname(sys.executable), "yices-smt2")
    command = [yices, "--smt2-model-format", "--bvconst-in-decimal", path]
    asked = subprocess.run(
        command, stdout=subprocess.PIPE, preexec_fn=lambda: limit(seconds), text=True, check=False
    )
    answered = asked.returncode == 0 and asked.stdout.split("\n", 1)[0] in ("sat", "unsat")
    return asked.stdout if answered else None


def main(path):
    sys.setrecursionlimit(100_000)
    facts = as_integers(weaken(list(z3.parse_smt2_file(path))))
    # Most take a hundredth of a second; a few depend on luck.
    for seed, seconds in enumerate([1, 2, SECONDS]):
        if proved(facts, seconds, seed):
            return "unsat"
        if answer := as_it_stands(path, 2 * seconds):
            return answer
    return "unknown"


if __name__ == "__main__":
    print(main(sys.argv[1]))
