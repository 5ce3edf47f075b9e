// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {ProofBase} from "./ProofBase.sol";

/// @title Accounts: what crosses the border is what the balances change by
contract AccountsProof is ProofBase {
    address internal constant COIN = address(0);

    function _begin(address owner, Other memory other, uint64 time)
        internal
        returns (Money memory before, Slots memory untouched)
    {
        _at(time);
        before = _money(owner);
        _assumeSound(before);
        other.jobId = bytes32(0);
        _assumeElsewhere(other, owner, owner, COIN, bytes32(uint256(1)));
        untouched = _slots(other);
    }

    function _money(address owner) internal view returns (Money memory m) {
        m = _read(owner, owner, COIN);
    }

    function check_deposit(address owner, Other memory other, uint128 amount) external {
        (Money memory before, Slots memory untouched) = _begin(owner, other, 1);
        vm.deal(address(this), amount);
        uint256 held = address(escrow).balance;
        escrow.depositFor{value: amount}(owner, COIN, amount);
        Money memory afterwards = _money(owner);
        assert(_less(afterwards.free, before.free) == amount);
        assert(_less(address(escrow).balance, held) == amount);
        afterwards.free = before.free;
        _assertSame(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }

    function check_thaw(address owner, Other memory other, uint256 amount, uint64 time) external {
        (Money memory before, Slots memory untouched) = _begin(owner, other, time);
        vm.prank(owner);
        escrow.thaw(COIN, amount);
        Money memory afterwards = _money(owner);
        assert(_less(before.free, afterwards.free) == amount);
        assert(_less(afterwards.thawing, before.thawing) == amount);
        (,, uint64 end) = escrow.account(owner, COIN);
        assert(end == uint256(time) + 1 hours);
        _assertUntouched(untouched, _slots(other));
    }

    function check_withdraw(address owner, Other memory other, uint64 time) external {
        (Money memory before, Slots memory untouched) = _begin(owner, other, time);
        (,, uint64 end) = escrow.account(owner, COIN);
        uint256 held = address(escrow).balance;
        vm.prank(owner);
        uint256 amount = escrow.withdraw(COIN, PAYEE);
        Money memory afterwards = _money(owner);
        assert(time >= end);
        assert(amount == before.thawing);
        assert(_less(held, address(escrow).balance) == amount);
        assert(afterwards.thawing == 0);
        afterwards.thawing = before.thawing;
        _assertSame(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }

    function check_withdrawEarned(address owner, Other memory other, uint64 time) external {
        (Money memory before, Slots memory untouched) = _begin(owner, other, time);
        uint256 held = address(escrow).balance;
        vm.prank(owner);
        uint256 amount = escrow.withdrawEarned(COIN, PAYEE);
        Money memory afterwards = _money(owner);
        assert(amount == before.earned);
        assert(_less(held, address(escrow).balance) == amount);
        assert(afterwards.earned == 0);
        afterwards.earned = before.earned;
        _assertSame(before, afterwards);
        _assertUntouched(untouched, _slots(other));
    }

    /// @notice The views tell what the slots hold: the packed words of the assembly are the structs of the source.
    function check_viewsTellTheSlots(address owner, address node, address token) external view {
        Money memory m = _read(owner, node, token);
        (uint128 free, uint128 thawing,) = escrow.account(owner, token);
        (uint256 claimed, uint64 covered) = escrow.channel(owner, node, token);
        (uint256 reserved,,) = escrow.reservation(owner, node, token);
        assert(m.free == free);
        assert(m.thawing == thawing);
        assert(m.claimed == claimed);
        assert(m.covered == covered);
        assert(m.reserved == reserved);
        assert(m.earned == escrow.earned(node, token));
        assert(m.fees == escrow.fees(token));
    }

    function check_viewTellsTheJob(Order memory order, Job memory job) external {
        bytes32 jobId = escrow.jobIdOf(order);
        for (uint256 state = 0; state <= uint256(type(JobState).max); ++state) {
            _put(jobId, JobState(state), false, job);
            Money memory m = _read(order, order.node, jobId);
            (JobState told, uint128 locked,,) = escrow.job(jobId);
            assert(uint256(told) == m.state);
            assert(locked == m.locked);
        }
    }
}
