// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobSpec, JobState, Order} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

contract OpenJobTest is Base {
    /// @dev What `JobOpened` carries besides its topics: one struct, because the stack is too small for so many values.
    struct Opened {
        address token;
        uint128 maxPrice;
        address assigner;
        uint64 deadline;
        uint32 challengeWindow;
        address arbiter;
        uint16 maxFeeBps;
        uint64 nonce;
        JobSpec spec;
        uint256 free;
    }

    function _assertOpened(Vm.Log memory log, Order memory order, uint256 free) internal view {
        assertEq(log.emitter, address(escrow));
        assertEq(log.topics.length, 4);
        assertEq(log.topics[0], IJobEscrow.JobOpened.selector);
        assertEq(log.topics[1], escrow.jobIdOf(order));
        assertEq(log.topics[2], bytes32(uint256(uint160(order.requester))));
        assertEq(log.topics[3], bytes32(uint256(uint160(order.node))));
        Opened memory opened = abi.decode(bytes.concat(bytes32(uint256(0x20)), log.data), (Opened));
        assertEq(opened.token, order.token);
        assertEq(opened.maxPrice, order.maxPrice);
        assertEq(opened.assigner, order.assigner);
        assertEq(opened.deadline, order.deadline);
        assertEq(opened.challengeWindow, order.challengeWindow);
        assertEq(opened.arbiter, order.arbiter);
        assertEq(opened.maxFeeBps, order.maxFeeBps);
        assertEq(opened.nonce, order.nonce);
        assertEq(keccak256(abi.encode(opened.spec)), keccak256(abi.encode(_spec())));
        assertEq(opened.free, free);
    }

    /// @dev The last log since `vm.recordLogs`.
    function _assertOpened(Order memory order, uint256 free) internal {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        _assertOpened(logs[logs.length - 1], order, free);
    }

    function _openReverts(Order memory order, bytes memory reason) internal {
        vm.deal(requester.addr, MAX_PRICE);
        vm.expectRevert(reason);
        vm.prank(requester.addr);
        escrow.openJob{value: MAX_PRICE}(order, _spec());
    }

    // ── Opening ─────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_LocksTheMostItMayCost() external {
        Order memory order = _order();
        vm.startPrank(requester.addr);
        escrow.deposit{value: MAX_PRICE + 5}(NATIVE, MAX_PRICE + 5);
        vm.recordLogs();
        bytes32 jobId = escrow.openJob(order, _spec());
        _assertOpened(order, 5);
        assertEq(jobId, escrow.jobIdOf(order));
        _assertJob(jobId, JobState.Open, MAX_PRICE, 0, address(0));
        _assertAccount(requester.addr, NATIVE, 5, 0, 0);
    }

    function test_ValueSentIsDepositedFirst() external {
        Order memory order = _order();
        vm.startPrank(requester.addr);
        escrow.deposit{value: 3 ether}(NATIVE, 3 ether);
        vm.recordLogs();
        vm.expectEmit(address(escrow));
        emit IJobEscrow.Deposited(requester.addr, NATIVE, requester.addr, 8 ether, 11 ether);
        escrow.openJob{value: 8 ether}(order, _spec());
        _assertOpened(order, 1 ether);
        _assertAccount(requester.addr, NATIVE, 1 ether, 0, 0);
        assertEq(address(escrow).balance, 11 ether);
    }

    function test_LocksTokens() external {
        Order memory order = _order();
        order.token = address(token);
        _fundToken(requester.addr, MAX_PRICE);
        vm.recordLogs();
        vm.prank(requester.addr);
        bytes32 jobId = escrow.openJob(order, _spec());
        _assertOpened(order, 0);
        _assertJob(jobId, JobState.Open, MAX_PRICE, 0, address(0));
    }

    function testFuzz_AnyOrderWithinTheLimits(Order memory order, uint32 ahead, uint128 surplus) external {
        order.requester = requester.addr;
        order.token = NATIVE;
        order.maxPrice = uint128(bound(order.maxPrice, 1, type(uint128).max / 2));
        surplus = uint128(bound(surplus, 0, type(uint128).max / 2));
        order.challengeWindow = uint32(bound(order.challengeWindow, 1, MAX_WINDOW));
        if (order.assigner == address(0)) order.assigner = assigner.addr;
        order.deadline = uint64(block.timestamp + bound(ahead, 0, MAX_DEADLINE));
        order.specHash = _specHash(_spec());

        vm.deal(requester.addr, type(uint256).max);
        vm.recordLogs();
        vm.prank(requester.addr);
        bytes32 jobId = escrow.openJob{value: uint256(order.maxPrice) + surplus}(order, _spec());
        _assertOpened(order, surplus);
        _assertJob(jobId, JobState.Open, order.maxPrice, 0, address(0));
        _assertAccount(requester.addr, NATIVE, surplus, 0, 0);
    }

    function test_NoncesMakeOrdersDistinct() external {
        Order memory order = _order();
        bytes32 first = _open(order);
        order.nonce = 1;
        bytes32 second = _open(order);
        assertTrue(first != second);
    }

    // ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_RevertWhen_CallerIsNotTheRequester() external {
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.NotRequester.selector, requester.addr, settler));
        vm.prank(settler);
        escrow.openJob(_order(), _spec());
    }

    function test_RevertWhen_MaxPriceIsZero() external {
        Order memory order = _order();
        order.maxPrice = 0;
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.ZeroAmount.selector));
    }

    function testFuzz_RevertWhen_DeadlinePassed(uint64 deadline) external {
        Order memory order = _order();
        order.deadline = uint64(bound(deadline, 0, block.timestamp - 1));
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.DeadlinePassed.selector, order.deadline));
    }

    function testFuzz_RevertWhen_DeadlineIsTooFar(uint64 deadline) external {
        uint64 latest = uint64(block.timestamp + MAX_DEADLINE);
        Order memory order = _order();
        order.deadline = uint64(bound(deadline, latest + 1, type(uint64).max));
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.DeadlineTooFar.selector, order.deadline, latest));
    }

    function testFuzz_RevertWhen_WindowIsTooLong(uint32 window) external {
        Order memory order = _order();
        order.challengeWindow = uint32(bound(window, MAX_WINDOW + 1, type(uint32).max));
        _openReverts(
            order, abi.encodeWithSelector(IJobEscrow.WindowTooLong.selector, order.challengeWindow, MAX_WINDOW)
        );
    }

    function test_RevertWhen_OpenOrderHasNoWindow() external {
        Order memory order = _assignedOrder();
        order.challengeWindow = 0;
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.WindowRequired.selector));
    }

    function test_RevertWhen_OpenOrderHasNoAssigner() external {
        Order memory order = _assignedOrder();
        order.assigner = address(0);
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.AssignerRequired.selector));
    }

    function test_RevertWhen_SpecIsAnother() external {
        Order memory order = _order();
        JobSpec memory spec = _spec();
        spec.operation = "decrypt";
        vm.deal(requester.addr, MAX_PRICE);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.SpecHashMismatch.selector, order.specHash, _specHash(spec)));
        vm.prank(requester.addr);
        escrow.openJob{value: MAX_PRICE}(order, spec);
    }

    function test_RevertWhen_OpenedBefore() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        bytes memory exists = abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId);
        _openReverts(order, exists);
    }

    function test_RevertWhen_PaidBefore() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        _submit(_result(order));
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId));
    }

    function test_RevertWhen_ResultIsWaiting() external {
        Order memory order = _windowedOrder();
        bytes32 jobId = _open(order);
        _submit(_result(order));
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId));
    }

    /// @dev A deadline at which the order can still be opened again is one at which it cannot be refunded, so only the
    /// clock's going back (a reorg) brings this about.
    function test_RevertWhen_RefundedBefore() external {
        Order memory order = _order();
        bytes32 jobId = _open(order);
        vm.warp(order.deadline + 1);
        _refund(order);
        vm.warp(order.deadline);
        _openReverts(order, abi.encodeWithSelector(IJobEscrow.JobExists.selector, jobId));
    }

    function testFuzz_RevertWhen_FreeBalanceIsTooSmall(uint128 deposited) external {
        Order memory order = _order();
        deposited = uint128(bound(deposited, 1, MAX_PRICE - 1));
        vm.startPrank(requester.addr);
        escrow.deposit{value: deposited}(NATIVE, deposited);
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, deposited, MAX_PRICE)
        );
        escrow.openJob(order, _spec());
    }

    function test_RevertWhen_OnlyThawingFundsWouldDo() external {
        vm.startPrank(requester.addr);
        escrow.deposit{value: MAX_PRICE}(NATIVE, MAX_PRICE);
        escrow.thaw(NATIVE, 1);
        vm.expectRevert(
            abi.encodeWithSelector(IJobEscrow.Insufficient.selector, requester.addr, NATIVE, MAX_PRICE - 1, MAX_PRICE)
        );
        escrow.openJob(_order(), _spec());
    }

    function test_RevertWhen_CoinComesWithATokenOrder() external {
        Order memory order = _order();
        order.token = address(token);
        _fundToken(requester.addr, MAX_PRICE);
        vm.expectRevert(abi.encodeWithSelector(IJobEscrow.WrongValue.selector, 0, 1));
        vm.prank(requester.addr);
        escrow.openJob{value: 1}(order, _spec());
    }
}
