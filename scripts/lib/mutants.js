// Makes mutants of the contracts: every small change that a test should notice, found in the compiler's syntax tree.
//
// All mutants of a contract are compiled at once. Each change stands next to the original behind a comparison of its number with
// a constant of 32 bytes, which is then replaced in the bytecode by the number of the mutant to run: one compilation without
// optimiser instead of hundreds, and a second a mutant instead of forty. A change that cannot stand next to the original
// (a modifier, a constant) is compiled alone.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const solc = require(path.join(__dirname, '..', '..', 'node_modules', 'solc'));

const ROOT = path.join(__dirname, '..', '..');
const MAGIC = crypto.createHash('sha256').update('littoral: number of the mutant').digest('hex');
const GUARD = 'contracts/src/Mutant.sol';
const GUARD_SOURCE =
  'pragma solidity ^0.8.37;\n' +
  `function _mutant(uint256 id) pure returns (bool yes) { assembly { yes := eq(id, 0x${MAGIC}) } }\n`;

const RELATIONAL = { '<': ['<='], '<=': ['<'], '>': ['>='], '>=': ['>'], '==': ['!='], '!=': ['=='] };
const ARITHMETIC = { '+': ['-'], '-': ['+'], '*': ['/'], '/': ['*'], '%': ['/'], '&': ['|'], '|': ['&'], '<<': ['>>'], '>>': ['<<'] };
const BUILTINS = {
  add: 'sub', sub: 'add', mul: 'add', and: 'or', or: 'and', shl: 'shr', shr: 'shl', gt: 'lt', lt: 'gt', eq: 'sub', div: 'mul',
  xor: 'or', not: 'iszero', iszero: 'not',
};

// Moves variables out of the stack's reach to memory, and does nothing else: what differs is the mutant only.
const UNOPTIMIZED = {
  enabled: false,
  runs: 1,
  details: {
    peephole: false, inliner: false, jumpdestRemover: false, orderLiterals: false, deduplicate: false, cse: false,
    constantOptimizer: false, simpleCounterForLoopUncheckedIncrement: false,
    yul: true, yulDetails: { stackAllocation: true, optimizerSteps: ':' },
  },
};

/** The source of a contract with all it imports: path → Buffer. */
function closure(entries) {
  const sources = {};
  const add = (name) => {
    if (sources[name]) return;
    sources[name] = fs.readFileSync(path.join(ROOT, name));
    for (const [, target] of sources[name].toString().matchAll(/^\s*(?:import\s+"|[^/\n]*\bfrom\s+")([^"]+)"/gm)) {
      add(target.startsWith('@') ? path.join('node_modules', target) : path.join(path.dirname(name), target));
    }
  };
  entries.forEach(add);
  return sources;
}

function compile(sources, outputSelection, optimizer = UNOPTIMIZED) {
  const input = {
    language: 'Solidity',
    sources: Object.fromEntries(Object.entries(sources).map(([name, text]) => [name, { content: text.toString() }])),
    settings: {
      remappings: ['@openzeppelin/=node_modules/@openzeppelin/'],
      viaIR: true,
      evmVersion: 'cancun',
      metadata: { bytecodeHash: 'none' },
      optimizer,
      outputSelection,
    },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  return { output, errors: (output.errors || []).filter((e) => e.severity === 'error') };
}

// ── From tree to mutants ────────────────────────────────────────────────────────────────────────────────────────────────

const range = (node) => {
  const [start, length] = node.src.split(':').map(Number);
  return [start, start + length];
};

class Finder {
  constructor(file, text) {
    Object.assign(this, { file, text, found: [], where: '', enums: {} });
  }

  slice(from, to) {
    return this.text.subarray(from, to).toString();
  }
  source(node) {
    return this.slice(...range(node));
  }

  /** `kind`: expression, statement, yul (statement), yulIf (its condition), alone. `scope`: the whole statement, for a diff. */
  add(kind, node, replacement, what, at = range(node)) {
    this.found.push({ file: this.file, where: this.where, kind, from: at[0], to: at[1], replacement, what });
  }

  /** An expression's source in which one part is replaced. */
  within(outer, inner, replacement) {
    const [a, d] = range(outer);
    const [b, c] = range(inner);
    return this.slice(a, b) + replacement + this.slice(c, d);
  }

  visit(node, parent) {
    if (Array.isArray(node)) return node.forEach((n) => this.visit(n, parent));
    if (!node || typeof node !== 'object' || !node.nodeType) return;
    const method = this[node.nodeType];
    if (method && method.call(this, node, parent) === false) return;
    for (const [key, child] of Object.entries(node)) {
      if (['typeName', 'overrides', 'documentation', 'baseContracts', 'parameters', 'returnParameters'].includes(key)) continue;
      if (child && typeof child === 'object') this.visit(child, node);
    }
  }

  EnumDefinition() {
    return false;
  }
  EventDefinition() {
    return false;
  }
  ErrorDefinition() {
    return false;
  }
  ImportDirective() {
    return false;
  }

  FunctionDefinition(node) {
    this.where = node.name || node.kind;
    this.constructing = node.kind === 'constructor';
    for (const modifier of node.modifiers) {
      if (modifier.kind === 'modifierInvocation' && modifier.modifierName.name !== undefined) {
        if (/^[a-z]/.test(modifier.modifierName.name)) this.add('alone', modifier, '', `drop ${modifier.modifierName.name}`);
      }
    }
    this.visit(node.body, node);
    this.where = '';
    return false;
  }
  ModifierDefinition(node) {
    this.where = node.name;
    this.visit(node.body, node);
    this.where = '';
    return false;
  }
  VariableDeclaration(node) {
    if (node.stateVariable && node.value) {
      this.where = node.name;
      const number = node.value.nodeType === 'Literal' && node.value.kind === 'number';
      if (number) this.add('alone', node.value, `(${this.source(node.value)} + 1)`, 'constant');
      this.where = '';
    }
    return !node.stateVariable;
  }

  // Statements

  ExpressionStatement(node, parent) {
    if (parent.nodeType === 'ForStatement') return false;
    const { expression } = node;
    // A requirement is dropped by its condition; a reference to storage must be set.
    const require = expression.nodeType === 'FunctionCall' && expression.expression.name === 'require';
    const reference = expression.nodeType === 'Assignment' && /storage pointer/.test(expression.leftHandSide.typeDescriptions.typeString);
    if (require || reference) return undefined;
    this.add('statement', node, '{}', 'drop statement', this.withSemicolon(node));
    return undefined;
  }
  EmitStatement(node) {
    this.add('statement', node, '{}', 'drop event', this.withSemicolon(node));
    node.eventCall.arguments.forEach((argument) => this.visit(argument, node));
    this.swaps(node.eventCall, 'statement', this.withSemicolon(node));
    return false;
  }
  Return(node) {
    const reference = /^struct .* storage/.test(node.expression?.typeDescriptions.typeString);
    if (!reference) this.add('statement', node, '{}', 'drop return', this.withSemicolon(node));
    const tuple = node.expression && node.expression.nodeType === 'TupleExpression' && node.expression.components;
    if (tuple) this.swapList(tuple, node, 'statement', this.withSemicolon(node));
  }
  RevertStatement(node) {
    this.add('statement', node, '{}', 'drop revert', this.withSemicolon(node));
    return false;
  }
  PlaceholderStatement() {
    return false;
  }
  withSemicolon(node) {
    const [from, to] = range(node);
    return [from, this.text[to] === 0x3b ? to + 1 : to];
  }
  IfStatement(node) {
    this.force(node.condition);
  }
  ForStatement(node) {
    this.visit(node.condition, node);
    this.visit(node.body, node);
    return false;
  }
  VariableDeclarationStatement(node) {
    this.visit(node.initialValue, node);
    const tuple = node.initialValue && node.initialValue.nodeType === 'TupleExpression' && node.initialValue.components;
    if (tuple) this.swapList(tuple, node.initialValue, 'expression');
    return false;
  }

  // Expressions

  force(condition) {
    this.add('expression', condition, 'true', 'condition true');
    this.add('expression', condition, 'false', 'condition false');
  }
  Conditional(node) {
    this.force(node.condition);
  }
  BinaryOperation(node) {
    const [left, right] = [this.source(node.leftExpression), this.source(node.rightExpression)];
    const between = this.slice(range(node.leftExpression)[1], range(node.rightExpression)[0]);
    const swap = (operator, what) =>
      this.add('expression', node, `(${left}${between.replace(node.operator, operator)}${right})`, what);
    (RELATIONAL[node.operator] || []).forEach((operator) => swap(operator, `${node.operator} to ${operator}`));
    (ARITHMETIC[node.operator] || []).forEach((operator) => swap(operator, `${node.operator} to ${operator}`));
    if (node.operator in ARITHMETIC) this.add('expression', node, `(${left})`, 'drop operand');
    if (node.operator === '&&' || node.operator === '||') {
      this.add('expression', node, `(${left})`, 'drop right side');
      this.add('expression', node, `(${right})`, 'drop left side');
    }
  }
  UnaryOperation(node) {
    if (node.operator === '!') this.add('expression', node, `(${this.source(node.subExpression)})`, 'drop !');
    else return false;
  }
  Assignment(node) {
    const { leftHandSide, rightHandSide, operator } = node;
    if (operator === '+=' || operator === '-=') {
      const [left, right] = [this.source(leftHandSide), this.source(rightHandSide)];
      this.add('expression', node, `(${left} ${operator === '+=' ? '-=' : '+='} ${right})`, `${operator} turned`);
      this.add('expression', node, `(${left} = ${right})`, `${operator} to =`);
    }
    if (rightHandSide.nodeType === 'TupleExpression') this.swapList(rightHandSide.components, rightHandSide, 'expression');
    this.visit(rightHandSide, node);
    return false;
  }
  FunctionCall(node, parent) {
    const callee = node.expression;
    if (node.kind === 'typeConversion') {
      // An address or a hash of a literal is a name, not a quantity.
      if (node.arguments[0].nodeType === 'Literal') return false;
      this.visit(node.arguments, node);
      return false;
    }
    if (callee.nodeType === 'Identifier' && callee.name === 'require') {
      this.add('expression', node.arguments[0], 'true', 'drop require');
      this.visit(node.arguments[0], node);
      return false;
    }
    // What returns nothing cannot stand in a conditional.
    if (['ExpressionStatement', 'Return'].includes(parent.nodeType)) this.swaps(node, 'statement', this.withSemicolon(parent));
    else if (parent.nodeType !== 'TryStatement') this.swaps(node, 'expression');
    this.visit(callee, node);
    this.visit(node.arguments, node);
    return false;
  }
  swaps(call, kind, at) {
    if (!(call.expression.nodeType === 'MemberAccess' && call.expression.memberName === 'encodeCall')) {
      this.swapList(call.arguments, call, kind, at);
    }
  }
  /** Neighbours of one type change places. */
  swapList(items, outer, kind, at = range(outer)) {
    for (let i = 0; i + 1 < items.length; ++i) {
      const [a, b] = [items[i], items[i + 1]];
      if (!a || !b || !a.typeDescriptions || this.source(a) === this.source(b)) continue;
      const width = (node) => node.typeDescriptions.typeString.replace(/uint\d+|int_const .*/, 'uint');
      if (width(a) !== width(b)) continue;
      const [[a0, a1], [b0, b1]] = [range(a), range(b)];
      const text = this.slice(at[0], a0) + this.source(b) + this.slice(a1, b0) + this.source(a) + this.slice(b1, at[1]);
      this.add(kind, outer, kind === 'expression' ? `(${text})` : text, 'swap', at);
    }
  }
  MemberAccess(node) {
    const type = /^type\(enum (\w+)\)$/.exec(node.expression.typeDescriptions?.typeString || '');
    if (!type) return;
    const members = this.enums[type[1]];
    const next = members[(members.indexOf(node.memberName) + 1) % members.length];
    this.add('expression', node, `${type[1]}.${next}`, `${node.memberName} to ${next}`);
  }
  Literal(node) {
    const source = this.source(node);
    if (node.kind === 'bool') this.add('expression', node, source === 'true' ? 'false' : 'true', 'flip');
    if (node.kind === 'number') this.add('expression', node, `(${source} + 1)`, 'constant');
  }
  Identifier(node, parent) {
    // A lone boolean that decides a return or an argument.
    if (node.typeDescriptions?.typeString === 'bool' && ['FunctionCall', 'Return', 'Assignment'].includes(parent.nodeType)) {
      this.add('expression', node, `(!${node.name})`, 'negate');
    }
  }

  // Assembly

  InlineAssembly(node) {
    this.yulBlock(node.AST);
    return false;
  }
  yulBlock(block) {
    block.statements.forEach((statement) => this.yul(statement));
  }
  yul(node) {
    switch (node.nodeType) {
      case 'YulBlock':
        return this.yulBlock(node);
      case 'YulIf':
        this.add('yulIf', node.condition, '1', 'condition true');
        this.add('yulIf', node.condition, '0', 'condition false');
        this.yulParts(node.condition, 'yulIf', node.condition);
        return this.yulBlock(node.body);
      case 'YulForLoop':
        this.yulParts(node.condition, 'alone', null);
        return this.yulBlock(node.body);
      case 'YulExpressionStatement':
        this.add('yul', node, '', 'drop statement');
        return this.yulParts(node.expression, 'yul', node);
      case 'YulAssignment':
        this.add('yul', node, '', 'drop assignment');
        return this.yulParts(node.value, 'yul', node);
      case 'YulVariableDeclaration':
        return node.value && this.yulParts(node.value, 'yulLet', node);
      case 'YulSwitch':
        return node.cases.forEach((c) => this.yulBlock(c.body));
      default:
        return undefined;
    }
  }
  yulParts(node, kind, outer) {
    const change = (part, replacement, what) => {
      if (kind === 'alone') return this.add('alone', part, replacement, what);
      if (kind !== 'yulLet') return this.add(kind, outer, this.within(outer, part, replacement), what);
      const names = outer.variables.map((v) => v.name).join(', ');
      return this.add(kind, outer, `${names} := ${this.within(outer.value, part, replacement)}`, what);
    };
    if (node.nodeType === 'YulLiteral' && node.kind === 'number') {
      change(node, `0x${(BigInt(node.value) + 1n).toString(16)}`, 'constant');
    }
    if (node.nodeType !== 'YulFunctionCall') return;
    const name = node.functionName.name;
    if (BUILTINS[name] !== undefined) {
      const [, after] = range(node.functionName);
      const [, end] = range(node);
      change(node, BUILTINS[name] + this.slice(after, end), `${name} to ${BUILTINS[name]}`);
      if (['add', 'sub', 'or', 'and'].includes(name)) change(node, this.source(node.arguments[0]), 'drop operand');
    }
    node.arguments.forEach((argument) => this.yulParts(argument, kind, outer));
  }
}

/** All mutants of the files, in order: number, file, function, what, and the line before and after. */
function find(files) {
  const sources = closure(files);
  const { output, errors } = compile(sources, { '*': { '': ['ast'] } });
  if (errors.length) throw new Error(errors[0].formattedMessage);
  const enums = {};
  for (const { ast } of Object.values(output.sources)) {
    for (const node of ast.nodes) if (node.nodeType === 'EnumDefinition') enums[node.name] = node.members.map((m) => m.name);
  }
  const mutants = [];
  for (const [name, { ast }] of Object.entries(output.sources)) {
    if (!/^contracts\/src\/[^/]+\.sol$/.test(name)) continue;
    const finder = new Finder(name, sources[name]);
    finder.enums = enums;
    finder.visit(ast.nodes, ast);
    const counts = {};
    for (const mutant of finder.found) {
      const diff = describe(sources[name], mutant);
      const label = `${path.basename(name)} ${mutant.where}: ${diff.before} => ${diff.after}`;
      counts[label] = (counts[label] || 0) + 1;
      // The same change to the same words twice in a function is told apart by its count.
      const key = counts[label] > 1 ? `${label} #${counts[label]}` : label;
      if (counts[label] > 1 && mutants.some((m) => m.from === mutant.from && m.to === mutant.to && m.replacement === mutant.replacement)) continue;
      mutants.push({ ...mutant, ...diff, key, id: mutants.length + 1 });
    }
  }
  return { sources, mutants };
}

function describe(text, { from, to, replacement }) {
  const start = text.lastIndexOf(0x0a, from) + 1;
  let end = text.indexOf(0x0a, to);
  if (end < 0) end = text.length;
  const squeeze = (s) => s.toString().replace(/\s+/g, ' ').trim();
  return {
    line: text.subarray(0, from).toString().split('\n').length,
    before: squeeze(text.subarray(start, end)),
    after: squeeze(text.subarray(start, from) + replacement + text.subarray(to, end)),
  };
}

// ── From mutants to bytecode ────────────────────────────────────────────────────────────────────────────────────────────

/** A file with all given mutants in it, each behind its number. */
function schema(text, mutants) {
  const sites = new Map();
  for (const mutant of mutants) {
    const at = `${mutant.from}:${mutant.to}:${mutant.kind}`;
    if (!sites.has(at)) sites.set(at, { ...mutant, alternatives: [] });
    sites.get(at).alternatives.push(mutant);
  }
  // Outer before inner; of two at one place, statements before expressions.
  const order = [...sites.values()].sort((a, b) => a.from - b.from || b.to - a.to || (a.kind === 'statement' ? -1 : 1));
  let index = 0;
  const render = (from, to) => {
    let out = '';
    let at = from;
    while (index < order.length && order[index].from >= at && order[index].to <= to) {
      const site = order[index++];
      out += text.subarray(at, site.from).toString();
      out += wrap(site, render(site.from, site.to));
      at = site.to;
    }
    return out + text.subarray(at, to).toString();
  };
  return Buffer.from(`${render(0, text.length)}\nimport {_mutant} from "./Mutant.sol";\n`);
}

function wrap({ kind, alternatives }, original) {
  const cases = () => alternatives.map((m) => `case ${m.id} { ${m.replacement} }`).join(' ');
  switch (kind) {
    case 'expression':
      return `(${alternatives.map((m) => `_mutant(${m.id}) ? ${m.replacement} : `).join('')}(${original}))`;
    case 'statement':
      return `{ ${alternatives.map((m) => `if (_mutant(${m.id})) { ${m.replacement} } else `).join('')}{ ${original} } }`;
    case 'yul':
      return `switch 0x${MAGIC} ${cases()} default { ${original} }`;
    case 'yulLet': {
      const [, names] = /^let\s+([\w\s,]+?)\s*:=/.exec(original);
      return `let ${names} switch 0x${MAGIC} ${cases()} default { ${original.replace(/^let\s+/, '')} }`;
    }
    default:
      throw new Error(`no way to place ${kind}`);
  }
}

/** Bytecode with all mutants in it. What the compiler refuses is left out and returned. */
function compileAll(sources, mutants, contracts) {
  let alive = mutants.filter((m) => !['alone', 'yulIf'].includes(m.kind));
  const refused = [];
  for (;;) {
    const mutated = { ...sources, [GUARD]: Buffer.from(GUARD_SOURCE) };
    for (const name of new Set(alive.map((m) => m.file))) mutated[name] = schema(sources[name], alive.filter((m) => m.file === name));
    const { output, errors } = compile(mutated, selection(contracts));
    if (errors.length === 0) return { bytecode: bytecodes(output, contracts), refused };
    const bad = blamed(errors, mutated, alive);
    if (bad.size === 0) throw new Error(errors.map((e) => e.formattedMessage).join('\n'));
    refused.push(...alive.filter((m) => bad.has(m.id)));
    alive = alive.filter((m) => !bad.has(m.id));
  }
}

/** The mutants whose words the errors point at. */
function blamed(errors, mutated, alive) {
  const bad = new Set();
  for (const { sourceLocation } of errors) {
    if (!sourceLocation || sourceLocation.start < 0) continue;
    const text = mutated[sourceLocation.file].toString('latin1');
    const candidates = [];
    for (const m of alive.filter((m) => m.file === sourceLocation.file)) {
      const marker = [`_mutant(${m.id}) ? `, `if (_mutant(${m.id})) { `, `case ${m.id} { `].find((s) => text.includes(s));
      const start = text.indexOf(marker) + marker.length;
      const end = start + Buffer.from(m.replacement).length;
      const contains = start <= sourceLocation.start && end >= sourceLocation.end;
      if (start <= sourceLocation.end && end >= sourceLocation.start) candidates.push([contains ? 0 : 1, end - start, m.id]);
    }
    // The narrowest one around the error, else the narrowest one in it.
    candidates.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    if (candidates.length) bad.add(candidates[0][2]);
  }
  return bad;
}

const changed = (sources, { file, from, to, replacement }) => ({
  ...sources,
  [file]: Buffer.concat([sources[file].subarray(0, from), Buffer.from(replacement), sources[file].subarray(to)]),
});

/** Bytecode of one mutant by itself, or nothing if the compiler refuses it. */
function compileOne(sources, mutant, contracts) {
  const { output, errors } = compile(changed(sources, mutant), selection(contracts));
  return errors.length ? undefined : bytecodes(output, contracts);
}

/** Bytecode as it would be deployed, with one mutant or none. */
function optimized(sources, contracts, mutant) {
  const { output, errors } = compile(mutant ? changed(sources, mutant) : sources, selection(contracts), { enabled: true, runs: 200 });
  if (errors.length) throw new Error(errors[0].formattedMessage);
  return bytecodes(output, contracts);
}

const selection = (contracts) =>
  Object.fromEntries(contracts.map((c) => [`contracts/src/${c}.sol`, { [c]: ['evm.bytecode.object'] }]));
// Without optimiser the address of a library is loaded even where all its functions are internal, and never used.
const bytecodes = (output, contracts) =>
  Object.fromEntries(
    contracts.map((c) => {
      const { object } = output.contracts[`contracts/src/${c}.sol`][c].evm.bytecode;
      return [c, object.replace(/__\$\w{34}\$__/g, '0'.repeat(40))];
    }),
  );

/** The bytecode in which only this mutant acts; 0 for none. */
const select = (bytecode, id) => bytecode.replaceAll(MAGIC, id.toString(16).padStart(64, '0'));

module.exports = { ROOT, MAGIC, find, schema, compileAll, compileOne, optimized, select };
