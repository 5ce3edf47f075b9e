// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobState, Order, Result} from "../../src/interfaces/IJobEscrow.sol";
import {Base} from "../Base.sol";

/// @notice One requester who signs orders and vouchers, one node, and everybody else who may act on them, in any order.
/// @dev Order `i` has nonce `i + 1` and a price of its own. Voucher `k` is over the prices of the first `k` orders and covers
/// them, so what the node is owed is what it signed for, whichever rail pays.
contract RailsHandler is Base {
    uint64 public constant ORDERS = 12;
    address internal arbiter = makeAddr("arbiter");
    Order[] internal _orders;

    /// @notice A call of the owner lowered a balance; `claimed` decreased. Neither ever happens.
    bool public lowered;
    bool public unclaimed;
    /// @notice Jobs resolved, and vouchers that paid.
    uint256 public resolved;
    uint256 public redeemed;
    uint256 internal _claimed;

    constructor() {
        setUp();
        vm.warp(NOW);
        for (uint64 i = 0; i < ORDERS; ++i) {
            Order memory order = _signedOrder(i + 1, priceOf(i));
            order.deadline = uint64(NOW + 300 days);
            order.maxFeeBps = 250;
            if (i % 3 != 0) order.challengeWindow = 1 hours;
            if (i % 3 == 2) order.arbiter = arbiter;
            _orders.push(order);
        }
    }

    modifier watched() {
        _;
        (uint256 claimed,) = escrow.channel(requester.addr, node.addr, NATIVE);
        if (claimed < _claimed) unclaimed = true;
        _claimed = claimed;
    }

    function priceOf(uint64 i) public pure returns (uint128) {
        return (i + 1) * 0.1 ether;
    }

    function sumOf(uint64 count) public pure returns (uint128 sum) {
        for (uint64 i = 0; i < count; ++i) {
            sum += priceOf(i);
        }
    }

    // ── What happened ───────────────────────────────────────────────────────────────────────────────────────────────

    function held() external view returns (uint256 escrowed, uint256 inRegistry) {
        return (address(escrow).balance, address(registry).balance);
    }

    /// @notice Free, thawing, reserved, locked, earned and fees.
    function owed() public view returns (uint256 sum) {
        (uint128 free, uint128 thawing,) = escrow.account(requester.addr, NATIVE);
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        sum = uint256(free) + thawing + reserved + escrow.earned(node.addr, NATIVE) + escrow.fees(NATIVE);
        for (uint256 i = 0; i < ORDERS; ++i) {
            (, uint128 locked,,) = escrow.job(escrow.jobIdOf(_orders[i]));
            sum += locked;
        }
    }

    function staked() external view returns (uint256 sum, uint256 bonded) {
        (uint128 active, uint128 unbonding,) = registry.stakeOf(node.addr);
        (uint32 bonds,,,) = registry.recordOf(node.addr);
        return (uint256(active) + unbonding, uint256(bonds) * BOND);
    }

    /// @notice Jobs that wait or are in dispute before an arbiter: as many as there are bonds.
    function bondedJobs() external view returns (uint256 count, uint256 bonds) {
        for (uint256 i = 2; i < ORDERS; i += 3) {
            (JobState state,,,) = escrow.job(escrow.jobIdOf(_orders[i]));
            if (state == JobState.Submitted || state == JobState.Disputed) ++count;
        }
        (bonds,,,) = registry.recordOf(node.addr);
    }

    /// @notice What the channel has paid.
    function claimedNow() external view returns (uint256 claimed) {
        (claimed,) = escrow.channel(requester.addr, node.addr, NATIVE);
    }

    // ── Requester ───────────────────────────────────────────────────────────────────────────────────────────────────

    function deposit(uint256 amount) external watched {
        amount = bound(amount, 1, 2 ether);
        vm.deal(requester.addr, amount);
        _deposit(amount);
    }

    function thawSome(uint256 amount) external watched {
        uint256 free = _free(requester.addr, NATIVE);
        if (free == 0) return;
        vm.prank(requester.addr);
        escrow.thaw(NATIVE, bound(amount, 1, free));
    }

    function withdraw() external watched {
        vm.prank(requester.addr);
        try escrow.withdraw(NATIVE, requester.addr) {} catch {}
    }

    function reserve(uint256 amount) external watched {
        uint256 free = _free(requester.addr, NATIVE);
        if (free == 0) return;
        vm.prank(requester.addr);
        escrow.reserve(node.addr, NATIVE, bound(amount, 1, free));
    }

    function unreserve(uint256 amount, bool release) external watched {
        (uint256 reserved,,) = escrow.reservation(requester.addr, node.addr, NATIVE);
        vm.startPrank(requester.addr);
        if (release) {
            try escrow.releaseReservation(node.addr, NATIVE) {} catch {}
        } else if (reserved != 0) {
            escrow.thawReservation(node.addr, NATIVE, bound(amount, 1, reserved));
        }
        vm.stopPrank();
    }

    /// @dev Cancels, accepts or disputes, where that is possible.
    function decide(uint256 which, uint256 how) external watched {
        Order memory order = _orders[which % ORDERS];
        vm.startPrank(requester.addr);
        if (how % 8 == 0) {
            try escrow.cancelJob(order) {} catch {}
        } else if (how % 8 == 1) {
            try escrow.accept(order) {} catch {}
        } else {
            try escrow.dispute(order) {} catch {}
        }
        vm.stopPrank();
    }

    // ── Node, settler, arbiter, owner ───────────────────────────────────────────────────────────────────────────────

    function submit(uint256 a, uint256 b) external watched {
        Result[] memory results = new Result[](2);
        (a, b) = (a % ORDERS, b % ORDERS);
        results[0] = _signedResult(_orders[a], priceOf(uint64(a)));
        results[1] = _signedResult(_orders[b], priceOf(uint64(b)));
        vm.prank(settler);
        escrow.submitResults(results);
    }

    function redeem(uint256 which, bool showAll) external watched {
        uint64 covered = uint64(1 + which % ORDERS);
        uint256 before = escrow.earned(node.addr, NATIVE);
        if (showAll) _redeemAbove(sumOf(covered), covered, _above(covered));
        else _redeem(sumOf(covered), covered);
        if (escrow.earned(node.addr, NATIVE) > before) ++redeemed;
    }

    /// @dev All orders with a higher nonce, sorted by id.
    function _above(uint64 covered) internal view returns (Order[] memory orders) {
        orders = new Order[](ORDERS - covered);
        for (uint64 i = covered; i < ORDERS; ++i) {
            uint256 k = i - covered;
            orders[k] = _orders[i];
            for (; k != 0 && escrow.jobIdOf(orders[k]) < escrow.jobIdOf(orders[k - 1]); --k) {
                (orders[k], orders[k - 1]) = (orders[k - 1], orders[k]);
            }
        }
    }

    function finalize(uint256 which) external watched {
        _finalize(_orders[which % ORDERS]);
    }

    function resolve(uint256 which, uint256 payNodeBps, uint256 slashBps) external watched {
        vm.prank(arbiter);
        try escrow.resolve(
            _orders[which % ORDERS], uint16(bound(payNodeBps, 0, 10_000)), uint16(bound(slashBps, 0, 10_000))
        ) {
            ++resolved;
        } catch {}
    }

    function moveStake(uint256 amount, bool finish) external watched {
        (uint128 active,,) = registry.stakeOf(node.addr);
        vm.startPrank(node.addr);
        if (finish) {
            try registry.finishUnbond() {} catch {}
        } else if (active != 0) {
            registry.startUnbond(bound(amount, 1, active));
        }
        vm.stopPrank();
        if (active < MIN_STAKE) {
            vm.deal(settler, MIN_STAKE);
            vm.prank(settler);
            registry.stake{value: MIN_STAKE}(node.addr);
        }
    }

    function own(uint16 feeBps) external watched {
        uint256 before = owed();
        uint256 earned = escrow.earned(node.addr, NATIVE);
        uint256 free = _free(requester.addr, NATIVE);
        vm.startPrank(owner);
        escrow.setFeeBps(feeBps % 501);
        escrow.setPaused(true);
        registry.setPaused(true);
        escrow.setPaused(false);
        vm.stopPrank();
        if (owed() < before || escrow.earned(node.addr, NATIVE) < earned || _free(requester.addr, NATIVE) < free) {
            lowered = true;
        }
    }

    function wait(uint256 time) external watched {
        skip(bound(time, 1, 1 days));
    }
}
