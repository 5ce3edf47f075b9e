// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {IJobEscrow, JobState, Order} from "./interfaces/IJobEscrow.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {TypedData} from "./TypedData.sol";

/// @title The escrow's storage, and the movements of money that its parts share
abstract contract EscrowState is IJobEscrow, EIP712, Ownable2Step, ReentrancyGuardTransient {
    using TypedData for Order;

    struct Account {
        // slot 0
        uint128 thawing;
        uint128 free;
        // slot 1
        uint64 thawEnd;
    }

    struct Channel {
        // slot 0: all that redeeming a voucher touches. Amounts of a channel end at 2^96 - 1, some 79 billion coins of 18
        // decimals; the price of an order does not.
        uint64 coveredNonce;
        uint96 reserved;
        uint96 claimed;
        // slot 1
        uint96 thawing;
        uint64 thawEnd;
    }

    struct Job {
        // slot 0
        JobState state;
        /// Settled by the order's signature, from the channel, and not opened on-chain.
        bool signed;
        uint48 nodeNumber;
        /// Before a result: when the order is cancelled, or zero. With one: when the time to challenge or decide it ends.
        uint64 timer;
        /// What is locked; once a signed order has ended, what the node was paid for it.
        uint128 amount;
        // slot 1: set only while a result is waiting
        bytes32 resultHash;
    }

    struct Session {
        // slot 0
        uint128 left;
        uint64 expiry;
    }

    string private constant NAME = "Littoral";
    string private constant VERSION = "1";
    /// @notice Highest fee in basis points.
    uint16 public constant MAX_FEE_BPS = 500;
    uint256 internal constant BPS = 10_000;

    /// @inheritdoc IJobEscrow
    address public immutable override registry;
    /// @inheritdoc IJobEscrow
    uint64 public immutable override thawPeriod;
    /// @inheritdoc IJobEscrow
    uint32 public immutable override maxChallengeWindow;
    /// @inheritdoc IJobEscrow
    uint64 public immutable override arbiterPeriod;

    // Slot 1, behind the pending owner.
    /// @inheritdoc IJobEscrow
    uint16 public override feeBps;
    /// @inheritdoc IJobEscrow
    bool public override paused;

    mapping(address token => mapping(address owner => Account)) internal _accounts;
    // The next three are written by way of storage pointers and, whole slots at once, assembly.
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 jobId => Job) internal _jobs;
    // slither-disable-next-line uninitialized-state
    mapping(address node => mapping(address token => mapping(address requester => Channel))) internal _channels;
    // slither-disable-next-line uninitialized-state
    mapping(address requester => mapping(address token => mapping(address key => Session))) internal _sessions;
    /// @inheritdoc IJobEscrow
    mapping(address node => mapping(address settler => bool)) public override isSettler;
    /// @inheritdoc IJobEscrow
    mapping(address node => mapping(address token => uint256)) public override earned;
    /// @inheritdoc IJobEscrow
    mapping(address token => uint256) public override fees;

    constructor(
        address registry_,
        uint64 thawPeriod_,
        address owner_,
        uint32 maxChallengeWindow_,
        uint64 arbiterPeriod_
    ) EIP712(NAME, VERSION) Ownable(owner_) {
        require(registry_ != address(0), ZeroAddress());
        require(INodeRegistry(registry_).escrow() == address(this), WrongRegistry(registry_));
        uint64 unbondingPeriod = INodeRegistry(registry_).unbondingPeriod();
        uint64 longest = maxChallengeWindow_ + arbiterPeriod_;
        require(unbondingPeriod > longest, UnbondingTooShort(unbondingPeriod, longest + 1));
        registry = registry_;
        thawPeriod = thawPeriod_;
        maxChallengeWindow = maxChallengeWindow_;
        arbiterPeriod = arbiterPeriod_;
    }

    modifier whenNotPaused() {
        require(!paused, Paused());
        _;
    }

    /// @inheritdoc IJobEscrow
    function jobIdOf(Order calldata order) public view override returns (bytes32) {
        return _hashTypedDataV4(order.hash());
    }

    /// @inheritdoc EIP712
    /// @dev With the literals: reading them back from immutables takes some 400 bytes of code.
    function eip712Domain()
        public
        view
        override
        returns (bytes1, string memory, string memory, uint256, address, bytes32, uint256[] memory)
    {
        return (hex"0f", NAME, VERSION, block.chainid, address(this), 0, new uint256[](0));
    }

    /// @dev When a notice given now is over.
    function _noticeEnd() internal view returns (uint64) {
        return uint64(block.timestamp) + thawPeriod;
    }

    // Whole slots are read and written at once: the compiler would do so once for every member.

    /// @dev Where a mapping at `mappingSlot` keeps the value of an address.
    function _slotOf(uint256 key, uint256 mappingSlot) internal pure returns (uint256 slot) {
        assembly ("memory-safe") {
            mstore(0x00, key)
            mstore(0x20, mappingSlot)
            slot := keccak256(0x00, 0x40)
        }
    }

    /// @dev Takes `amount` of the account in this slot, free funds first, or all if there is less. `balances` is the slot
    /// afterwards: free funds in its higher half, thawing ones in the lower.
    function _draw(uint256 slot, uint256 amount) internal returns (uint256 drawn, uint256 balances) {
        assembly ("memory-safe") {
            balances := sload(slot)
            let free := shr(128, balances)
            drawn := amount
            if gt(amount, free) {
                let more := sub(amount, free)
                let thawing := shr(128, shl(128, balances))
                if gt(more, thawing) { more := thawing }
                drawn := add(free, more)
                // As though thawed at once.
                balances := sub(add(balances, shl(128, more)), more)
            }
            balances := sub(balances, shl(128, drawn))
            if drawn { sstore(slot, balances) }
        }
    }

    /// @dev `free` and `thawing` must fit.
    function _store(Account storage acc, uint256 free, uint256 thawing) internal {
        assembly ("memory-safe") {
            sstore(acc.slot, or(shl(128, free), thawing))
        }
    }

    /// @dev All of it must fit.
    function _store(Channel storage c, uint256 claimed, uint256 reserved, uint256 coveredNonce) internal {
        assembly ("memory-safe") {
            sstore(c.slot, or(or(shl(160, claimed), shl(64, reserved)), coveredNonce))
        }
    }

    /// @dev As `_draw` of a slot.
    function _draw(Account storage acc, uint256 amount)
        internal
        returns (uint256 drawn, uint256 free, uint256 thawing)
    {
        uint256 slot;
        assembly ("memory-safe") {
            slot := acc.slot
        }
        (drawn, thawing) = _draw(slot, amount);
        free = thawing >> 128;
        // forge-lint: disable-next-line(unsafe-typecast)
        thawing = uint128(thawing); // the lower half is all of it
    }

    function _store(Job storage j, JobState state, bool signed, uint48 nodeNumber, uint64 timer, uint128 amount)
        internal
    {
        assembly ("memory-safe") {
            sstore(j.slot, or(or(or(state, shl(8, signed)), shl(16, nodeNumber)), or(shl(64, timer), shl(128, amount))))
        }
    }

    /// @dev Saturates, so that it cannot revert within a batch. Only a token that claims a supply of 2^128 or more gets
    /// there, and only its holders lose.
    function _credit(address owner, address token, uint128 amount) internal returns (uint256 free) {
        Account storage acc = _accounts[token][owner];
        free = uint256(acc.free) + amount;
        if (free > type(uint128).max) free = type(uint128).max;
        // forge-lint: disable-next-line(unsafe-typecast)
        acc.free = uint128(free);
    }

    /// @dev Credits a node; `total` is what it has earned afterwards.
    function _earn(address node, address token, uint256 amount) internal returns (uint256 total) {
        total = earned[node][token] + amount;
        earned[node][token] = total;
    }
}
