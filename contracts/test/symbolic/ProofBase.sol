// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Test} from "forge-std/Test.sol";

import {IJobEscrow, JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";

/// @notice Halmos' own cheatcodes.
interface SymbolicVm {
    function enableSymbolicStorage(address account) external;
}

/// @notice Stands where the registry will be while the escrow is constructed: each names the other, and the prover cannot tell
/// an address beforehand. The real registry's code takes its place.
contract Placeholder {
    function escrow() external view returns (address) {
        return msg.sender;
    }

    function unbondingPeriod() external pure returns (uint64) {
        return 40 days;
    }
}

/// @title What all proofs share
/// @notice The contracts are the artifacts that are deployed, optimiser and all. Nothing in them is overridden or replaced.
///
/// Every slot of both contracts starts with an arbitrary value, and so do time and arguments: a proof is about every state there
/// could be, reachable or not, but for what it assumes by `vm.assume`. ECDSA recovery is an uninterpreted function to the prover:
/// any signature may be anybody's over anything, so no proof rests on who signed. Contract wallets are left out: they are asked
/// by STATICCALL, so all they can change is whether a signature counts, which is arbitrary already. Hashes do not collide.
///
/// Balances are read from storage, where they are, rather than from the contract's views; `ViewsProof` is about those.
abstract contract ProofBase is Test {
    SymbolicVm internal constant svm = SymbolicVm(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    address internal constant OWNER = address(0x0123);
    address internal constant PAYEE = address(0x0456);
    uint128 internal constant BOND = 0.1 ether;

    uint256 private constant ACCOUNTS = 4;
    uint256 private constant JOBS = 5;
    uint256 private constant CHANNELS = 6;
    uint256 private constant SESSIONS = 7;
    uint256 private constant EARNED = 9;
    uint256 private constant FEES = 10;
    uint256 private constant NODES = 4;
    /// @dev The time in proofs about deadlines and periods: what they are compared with is arbitrary on either side of it.
    uint64 internal constant NOW = 2 ** 40;

    IJobEscrow internal escrow;
    INodeRegistry internal registry;

    /// @dev What belongs to the parties of one order, in its token.
    struct Money {
        uint256 free;
        uint256 thawing;
        uint256 reserved;
        uint256 locked;
        uint256 earned;
        uint256 fees;
        uint256 claimed;
        uint256 covered;
        uint256 state;
    }

    /// @dev Any account, channel, node, token and job at all.
    struct Other {
        address owner;
        address ownerToken;
        address channelOwner;
        address channelNode;
        address channelToken;
        address earner;
        address earnerToken;
        address feeToken;
        bytes32 jobId;
    }

    /// @dev What a job's slot holds besides its state and whether it is signed.
    struct Job {
        uint48 number;
        uint64 timer;
        uint128 amount;
    }

    /// @dev The slots of an `Other`.
    struct Slots {
        uint256 account;
        uint256 accountEnd;
        uint256 channel;
        uint256 channelEnd;
        uint256 earned;
        uint256 fees;
        uint256 job;
    }

    /// @dev The slots of a node.
    struct Staked {
        uint256 stake;
        uint256 number;
        uint256 unbonding;
        uint256 bonds;
        uint256 unbondEnd;
    }

    function setUp() public virtual {
        registry = INodeRegistry(address(new Placeholder()));
        escrow = IJobEscrow(
            _create("JobEscrow", abi.encode(registry, uint64(1 hours), OWNER, uint32(30 days), uint64(7 days)))
        );
        address real =
            _create("NodeRegistry", abi.encode(uint128(1 ether), uint64(40 days), BOND, address(escrow), OWNER));
        vm.etch(address(registry), real.code);
        svm.enableSymbolicStorage(address(escrow));
        svm.enableSymbolicStorage(address(registry));
        vm.deal(address(escrow), 2 ** 95);
        vm.deal(address(registry), 2 ** 95);
    }

    function _create(string memory name, bytes memory arguments) internal returns (address created) {
        bytes memory code =
            bytes.concat(vm.getCode(string.concat("contracts/out/prove/", name, ".sol/", name, ".json")), arguments);
        assembly ("memory-safe") {
            created := create(0, add(code, 0x20), mload(code))
        }
        require(created != address(0));
    }

    // ── Assumptions ─────────────────────────────────────────────────────────────────────────────────────────────────
    // Each a comparison by itself: && and || would double the prover's paths.

    /// @dev Any time at which 64 bits of seconds with any period on top still fit.
    function _at(uint64 time) internal {
        vm.assume(time < 2 ** 60);
        vm.warp(time);
    }

    /// @dev Keys, not contracts.
    function _key(address account) internal view {
        vm.assume(uint160(account) > 0xffff);
        vm.assume(account != address(escrow));
        vm.assume(account != address(registry));
        vm.assume(account != address(this));
        vm.assume(account != address(vm));
        vm.assume(account != address(svm));
    }

    /// @dev No token has a supply of 2^128 or more, and what is owed is at most what is held.
    function _assumeSound(Money memory m) internal pure {
        vm.assume(m.earned < 2 ** 128);
        vm.assume(m.fees < 2 ** 128);
        vm.assume(_sum(m) < 2 ** 128);
    }

    /// @dev A difference that wraps: a checked one that is negative would revert, and of what reverts nothing is proved.
    function _less(uint256 a, uint256 b) internal pure returns (uint256) {
        unchecked {
            return a - b;
        }
    }

    /// @dev Without a jump, as the next.
    function _and(bool a, bool b) internal pure returns (bool both) {
        assembly {
            both := and(a, b)
        }
    }

    function _or(bool a, bool b) internal pure returns (bool either) {
        assembly {
            either := or(a, b)
        }
    }

    // ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function _load(uint256 slot) private view returns (uint256) {
        return uint256(vm.load(address(escrow), bytes32(slot)));
    }

    function _slotOf(address key, uint256 slot) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(key, slot)));
    }

    function _accountSlot(address owner, address token) private pure returns (uint256) {
        return _slotOf(owner, _slotOf(token, ACCOUNTS));
    }

    function _channelSlot(address owner, address node, address token) private pure returns (uint256) {
        return _slotOf(owner, _slotOf(token, _slotOf(node, CHANNELS)));
    }

    function _jobSlot(bytes32 jobId) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(jobId, JOBS)));
    }

    function _readJob(bytes32 jobId) internal view returns (uint256) {
        return _load(_jobSlot(jobId));
    }

    function _sessionLeft(address owner, address token, address key) internal view returns (uint256) {
        return uint128(_load(_slotOf(key, _slotOf(token, _slotOf(owner, SESSIONS)))));
    }

    /// @dev All but what a job holds.
    function _read(address owner, address node, address token) internal view returns (Money memory m) {
        uint256 slot = _load(_accountSlot(owner, token));
        m.free = slot >> 128;
        m.thawing = uint128(slot);
        slot = _load(_channelSlot(owner, node, token));
        m.claimed = slot >> 160;
        m.reserved = uint96(slot >> 64);
        m.covered = uint64(slot);
        m.earned = _load(_slotOf(token, _slotOf(node, EARNED)));
        m.fees = _load(_slotOf(token, FEES));
    }

    function _read(Order memory order, address node, bytes32 jobId) internal view returns (Money memory m) {
        m = _read(order.requester, node, order.token);
        uint256 slot = _load(_jobSlot(jobId));
        m.state = uint8(slot);
        if (_locks(JobState(m.state))) m.locked = slot >> 128;
    }

    function _locks(JobState state) private pure returns (bool) {
        return state == JobState.Open || state == JobState.Submitted || state == JobState.Disputed;
    }

    /// @dev Puts the job into this state; what its slot holds besides is up to `job`.
    function _put(bytes32 jobId, JobState state, bool signed, Job memory job) internal {
        uint256 word = uint256(state) | (signed ? 1 << 8 : 0);
        word |= uint256(job.number) << 16 | uint256(job.timer) << 64 | uint256(job.amount) << 128;
        vm.store(address(escrow), bytes32(_jobSlot(jobId)), bytes32(word));
    }

    function _sum(Money memory m) internal pure returns (uint256) {
        unchecked {
            return m.free + m.thawing + m.reserved + m.locked + m.earned + m.fees;
        }
    }

    /// @dev One question to the solver instead of nine.
    function _same(Money memory a, Money memory b) internal pure returns (bool) {
        uint256 difference = (a.free ^ b.free) | (a.thawing ^ b.thawing) | (a.reserved ^ b.reserved);
        difference |= (a.locked ^ b.locked) | (a.earned ^ b.earned) | (a.fees ^ b.fees);
        return difference | (a.claimed ^ b.claimed) | (a.covered ^ b.covered) | (a.state ^ b.state) == 0;
    }

    function _assertSame(Money memory a, Money memory b) internal pure {
        assert(_same(a, b));
    }

    // ── Everybody else ──────────────────────────────────────────────────────────────────────────────────────────────

    function _slots(Other memory o) internal view returns (Slots memory s) {
        uint256 slot = _accountSlot(o.owner, o.ownerToken);
        (s.account, s.accountEnd) = (_load(slot), _load(slot + 1));
        slot = _channelSlot(o.channelOwner, o.channelNode, o.channelToken);
        (s.channel, s.channelEnd) = (_load(slot), _load(slot + 1));
        s.earned = _load(_slotOf(o.earnerToken, _slotOf(o.earner, EARNED)));
        s.fees = _load(_slotOf(o.feeToken, FEES));
        s.job = _load(_jobSlot(o.jobId));
    }

    /// @dev As `_same`.
    function _untouched(Slots memory a, Slots memory b) internal pure returns (bool) {
        uint256 difference = (a.account ^ b.account) | (a.accountEnd ^ b.accountEnd) | (a.channel ^ b.channel);
        difference |= (a.channelEnd ^ b.channelEnd) | (a.earned ^ b.earned);
        return difference | (a.fees ^ b.fees) | (a.job ^ b.job) == 0;
    }

    function _assertUntouched(Slots memory a, Slots memory b) internal pure {
        assert(_untouched(a, b));
    }

    /// @dev None of it is the parties'.
    function _assumeElsewhere(Other memory o, address owner, address node, address token, bytes32 jobId) internal pure {
        vm.assume(!_and(o.owner == owner, o.ownerToken == token));
        bool channel = _and(o.channelOwner == owner, o.channelNode == node);
        vm.assume(!_and(channel, o.channelToken == token));
        vm.assume(!_and(o.earner == node, o.earnerToken == token));
        vm.assume(o.feeToken != token);
        vm.assume(o.jobId != jobId);
    }

    // ── The registry ────────────────────────────────────────────────────────────────────────────────────────────────

    function _staked(address node) internal view returns (Staked memory s) {
        uint256 slot = _slotOf(node, NODES);
        uint256 word = uint256(vm.load(address(registry), bytes32(slot)));
        s.stake = uint128(word);
        s.unbondEnd = uint64(word >> 128);
        s.number = uint48(word >> 192);
        word = uint256(vm.load(address(registry), bytes32(slot + 1)));
        s.unbonding = uint128(word);
        s.bonds = uint32(word >> 128);
    }

    /// @dev The counters of jobs paid, disputed and lost are not at their end, where they stop.
    function _counting(address node) internal view {
        uint256 counters = uint256(vm.load(address(registry), bytes32(_slotOf(node, NODES) + 1))) >> 160;
        vm.assume(uint32(counters) != type(uint32).max);
        vm.assume(uint32(counters >> 32) != type(uint32).max);
        vm.assume(uint32(counters >> 64) != type(uint32).max);
    }

    // ── Arguments ───────────────────────────────────────────────────────────────────────────────────────────────────

    function _orders(Order memory order) internal pure returns (Order[] memory orders) {
        orders = new Order[](1);
        orders[0] = order;
    }
}
