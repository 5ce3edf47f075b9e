// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {Order, Result} from "../../src/interfaces/IJobEscrow.sol";
import {Base} from "../Base.sol";
import {FeeToken} from "../mocks/HostileTokens.sol";
import {TestToken} from "../mocks/TestToken.sol";
import {Ledger} from "./Ledger.sol";

/// @notice Does what people and machines may do to the escrow, in any order, and keeps the books.
/// @dev A call that cannot succeed is not made, unless whether it succeeds is what matters (withdrawals before their time).
contract EscrowHandler is Base {
    Ledger public immutable ledger = new Ledger();
    address[] public tokens;
    Vm.Wallet[] internal _requesters;
    Vm.Wallet[] internal _nodes;
    Order[] internal _orders;

    /// @notice The most that a node has signed for a job.
    mapping(bytes32 jobId => mapping(address node => uint256)) public signedPrice;
    uint256 public withdrawals;
    /// @notice A withdrawal of thawing funds succeeded before its time.
    bool public withdrawnTooEarly;
    mapping(address owner => mapping(address token => uint256)) internal _thawEnd;

    constructor() {
        setUp();
        tokens = [NATIVE, address(token), address(new FeeToken())];
        for (uint256 i = 0; i < 3; ++i) {
            _requesters.push(vm.createWallet(string.concat("requester ", vm.toString(i))));
            _nodes.push(vm.createWallet(string.concat("node ", vm.toString(i))));
            for (uint256 t = 1; t < tokens.length; ++t) {
                TestToken(tokens[t]).mint(_requesters[i].addr, type(uint96).max);
                vm.prank(_requesters[i].addr);
                TestToken(tokens[t]).approve(address(escrow), type(uint256).max);
            }
            vm.deal(_requesters[i].addr, type(uint96).max);
            if (i != 2) _register(_nodes[i].addr, MIN_STAKE);
        }
    }

    /// @dev Folds what the call emitted.
    modifier booked() {
        vm.recordLogs();
        _;
        ledger.fold(vm.getRecordedLogs(), address(escrow));
    }

    // ── What happened ───────────────────────────────────────────────────────────────────────────────────────────────

    function people() external view returns (address[] memory all) {
        all = new address[](6);
        for (uint256 i = 0; i < 3; ++i) {
            all[i] = _requesters[i].addr;
            all[i + 3] = _nodes[i].addr;
        }
    }

    function theEscrow() external view returns (address) {
        return address(escrow);
    }

    function jobIds() external view returns (bytes32[] memory all) {
        all = new bytes32[](_orders.length);
        for (uint256 i = 0; i < all.length; ++i) {
            all[i] = escrow.jobIdOf(_orders[i]);
        }
    }

    // ── Requesters ──────────────────────────────────────────────────────────────────────────────────────────────────

    function deposit(uint256 who, uint256 what, uint256 amount) external booked {
        address from = _requesters[who % 3].addr;
        address to = _requesters[(who >> 8) % 3].addr;
        address token_ = tokens[what % 3];
        amount = bound(amount, 1, 1e24);
        vm.prank(from);
        escrow.depositFor{value: token_ == NATIVE ? amount : 0}(to, token_, amount);
    }

    function open(uint256 who, uint256 what, uint256 maxPrice, uint256 seed) external booked {
        Order memory order;
        order.requester = _requesters[who % 3].addr;
        order.token = tokens[what % 3];
        uint256 free = _free(order.requester, order.token);
        if (free == 0) return;
        order.maxPrice = uint128(bound(maxPrice, 1, free));
        if (seed % 3 == 0) {
            order.assigner = assigner.addr;
        } else {
            order.node = _nodes[(seed >> 8) % 3].addr;
        }
        if (seed % 3 != 1) order.challengeWindow = uint32(1 + (seed >> 16) % 2 days);
        order.deadline = uint64(block.timestamp + (seed >> 64) % 3 days);
        order.specHash = _specHash(_spec());
        order.nonce = uint64(_orders.length);
        _orders.push(order);
        vm.prank(order.requester);
        escrow.openJob(order, _spec());
    }

    function thaw(uint256 who, uint256 what, uint256 amount) external booked {
        address from = _requesters[who % 3].addr;
        address token_ = tokens[what % 3];
        uint256 free = _free(from, token_);
        if (free == 0) return;
        _thawEnd[from][token_] = block.timestamp + THAW_PERIOD;
        vm.prank(from);
        escrow.thaw(token_, bound(amount, 1, free));
    }

    function withdraw(uint256 who, uint256 what) external booked {
        address from = _requesters[who % 3].addr;
        address token_ = tokens[what % 3];
        vm.prank(from);
        try escrow.withdraw(token_, from) {
            ++withdrawals;
            if (block.timestamp < _thawEnd[from][token_]) withdrawnTooEarly = true;
        } catch {}
    }

    // ── Results ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Three results, good and bad, perhaps for the same job.
    function submit(uint256[3] calldata seeds) external booked {
        if (_orders.length == 0) return;
        Result[] memory results = new Result[](3);
        for (uint256 i = 0; i < 3; ++i) {
            results[i] = _anyResult(seeds[i]);
        }
        vm.prank(settler);
        escrow.submitResults(results);
    }

    function _anyResult(uint256 seed) internal returns (Result memory result) {
        Order memory order = _orders[seed % _orders.length];
        Vm.Wallet memory by = _nodes[(seed >> 32) % 3];
        for (uint256 i = 0; i < 3; ++i) {
            // Mostly the right one.
            if (_nodes[i].addr == order.node && (seed >> 40) % 8 != 0) by = _nodes[i];
        }
        uint128 price = uint128((seed >> 48) % (uint256(order.maxPrice) + order.maxPrice / 8 + 1));
        result = _result(order, by, price);
        bytes32 jobId = escrow.jobIdOf(order);
        if (price > signedPrice[jobId][by.addr]) signedPrice[jobId][by.addr] = price;
        uint256 harm = (seed >> 200) % 16;
        if (harm == 0) result.receiptSignature[7] ^= 0x20;
        if (harm == 1) result.price += 1;
        if (harm == 2) result.assignmentExpiry += 1;
        if (harm == 3) result.resultHash = 0;
    }

    function finalize(uint256 a, uint256 b) external booked {
        if (_orders.length != 0) escrow.finalize(_two(a, b));
    }

    function refund(uint256 a, uint256 b) external booked {
        if (_orders.length != 0) escrow.refundExpired(_two(a, b));
    }

    function _two(uint256 a, uint256 b) internal view returns (Order[] memory orders) {
        orders = new Order[](2);
        orders[0] = _orders[a % _orders.length];
        orders[1] = _orders[b % _orders.length];
    }

    function withdrawEarned(uint256 who, uint256 what) external booked {
        address from = _nodes[who % 3].addr;
        address token_ = tokens[what % 3];
        if (escrow.earned(from, token_) == 0) return;
        vm.prank(from);
        escrow.withdrawEarned(token_, from);
    }

    // ── The world ───────────────────────────────────────────────────────────────────────────────────────────────────

    function wait(uint256 time) external {
        skip(bound(time, 1, 12 hours));
    }

    function unstake(uint256 who) external {
        address from = _nodes[who % 2].addr;
        (uint128 active,,) = registry.stakeOf(from);
        vm.startPrank(from);
        if (active != 0) registry.startUnbond(active);
        vm.stopPrank();
    }

    function restake(uint256 who) external {
        vm.deal(settler, MIN_STAKE);
        vm.prank(settler);
        registry.stake{value: MIN_STAKE}(_nodes[who % 2].addr);
    }
}
