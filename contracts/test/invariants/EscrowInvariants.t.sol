// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Test} from "forge-std/Test.sol";

import {IJobEscrow, JobState} from "../../src/interfaces/IJobEscrow.sol";
import {EscrowHandler} from "./EscrowHandler.sol";
import {Ledger} from "./Ledger.sol";

/// @notice What holds of the escrow, whatever is done to it.
contract EscrowInvariantsTest is Test {
    EscrowHandler internal handler;
    IJobEscrow internal escrow;
    Ledger internal ledger;

    function setUp() external {
        handler = new EscrowHandler();
        escrow = IJobEscrow(handler.theEscrow());
        ledger = handler.ledger();
        vm.warp(1_700_000_000);
        bytes4[] memory selectors = new bytes4[](11);
        selectors[0] = EscrowHandler.deposit.selector;
        selectors[1] = EscrowHandler.open.selector;
        selectors[2] = EscrowHandler.open.selector;
        selectors[3] = EscrowHandler.submit.selector;
        selectors[4] = EscrowHandler.submit.selector;
        selectors[5] = EscrowHandler.finalize.selector;
        selectors[6] = EscrowHandler.refund.selector;
        selectors[7] = EscrowHandler.thaw.selector;
        selectors[8] = EscrowHandler.withdraw.selector;
        selectors[9] = EscrowHandler.withdrawEarned.selector;
        selectors[10] = EscrowHandler.wait.selector;
        targetSelector(FuzzSelector({addr: address(handler), selectors: selectors}));
        bytes4[] memory staking = new bytes4[](2);
        staking[0] = EscrowHandler.unstake.selector;
        staking[1] = EscrowHandler.restake.selector;
        targetSelector(FuzzSelector({addr: address(handler), selectors: staking}));
        targetContract(address(handler));
    }

    function _held(address token) internal view returns (uint256) {
        return token == address(0) ? address(escrow).balance : IERC20(token).balanceOf(address(escrow));
    }

    /// @dev Free, thawing, locked and earned: nothing else is owed, and nothing is lost.
    function _owed(address token) internal view returns (uint256 owed) {
        address[] memory people = handler.people();
        for (uint256 i = 0; i < people.length; ++i) {
            (uint128 free, uint128 thawing,) = escrow.account(people[i], token);
            owed += uint256(free) + thawing + escrow.earned(people[i], token);
        }
        bytes32[] memory jobIds = handler.jobIds();
        for (uint256 i = 0; i < jobIds.length; ++i) {
            if (ledger.job(jobIds[i]).token != token) continue;
            (, uint128 locked,,) = escrow.job(jobIds[i]);
            owed += locked;
        }
    }

    function invariant_TheEscrowHoldsExactlyWhatItOwes() external view {
        for (uint256 i = 0; i < 3; ++i) {
            address token = handler.tokens(i);
            assertEq(_held(token), _owed(token));
        }
    }

    function invariant_EachJobEndsOnceAndGivesOutWhatWasLocked() external view {
        bytes32[] memory jobIds = handler.jobIds();
        for (uint256 i = 0; i < jobIds.length; ++i) {
            Ledger.Job memory job = ledger.job(jobIds[i]);
            bool ended = job.state == JobState.Paid || job.state == JobState.Refunded;
            assertEq(job.endings, ended ? 1 : 0, "endings");
            assertEq(job.paid + job.returned + job.locked, job.maxPrice, "shares");
            if (ended) assertEq(job.locked, 0, "locked");
        }
    }

    function invariant_NodesGetAtMostWhatTheySigned() external view {
        bytes32[] memory jobIds = handler.jobIds();
        for (uint256 i = 0; i < jobIds.length; ++i) {
            Ledger.Job memory job = ledger.job(jobIds[i]);
            assertLe(job.paid, handler.signedPrice(jobIds[i], job.paidTo));
            assertLe(job.paid, job.maxPrice);
        }
    }

    /// @dev An indexer never needs to ask the contract.
    function invariant_EventsAloneGiveTheState() external view {
        address[] memory people = handler.people();
        for (uint256 i = 0; i < people.length; ++i) {
            for (uint256 t = 0; t < 3; ++t) {
                address token = handler.tokens(t);
                Ledger.Account memory told = ledger.account(people[i], token);
                (uint128 free, uint128 thawing,) = escrow.account(people[i], token);
                assertEq(free, told.free, "free");
                assertEq(thawing, told.thawing, "thawing");
                assertEq(escrow.earned(people[i], token), told.earned, "earned");
            }
        }
        bytes32[] memory jobIds = handler.jobIds();
        for (uint256 i = 0; i < jobIds.length; ++i) {
            Ledger.Job memory told = ledger.job(jobIds[i]);
            (JobState state, uint128 locked,,) = escrow.job(jobIds[i]);
            assertEq(uint256(state), uint256(told.state), "state");
            assertEq(locked, told.locked, "locked");
        }
    }

    function invariant_NothingLeavesBeforeItHasThawed() external view {
        assertFalse(handler.withdrawnTooEarly());
    }

    /// @dev Invariants say nothing of what never happens: random calls do bring about every way a job can end.
    function test_TheHandlerGetsEverywhere() external {
        for (uint256 i = 0; i < 600; ++i) {
            uint256 a = uint256(keccak256(abi.encode(i, "a")));
            uint256 b = uint256(keccak256(abi.encode(i, "b")));
            uint256 c = uint256(keccak256(abi.encode(i, "c")));
            if (i % 10 == 0) handler.deposit(a, b, c);
            else if (i % 10 < 3) handler.open(a, b, c % 1e20, c);
            else if (i % 10 < 5) handler.submit([a, b, c]);
            else if (i % 10 == 5) handler.finalize(a, b);
            else if (i % 10 == 6) handler.refund(a, b);
            else if (i % 10 == 7) handler.thaw(a, b, c % 1e20);
            else if (i % 10 == 8) handler.withdraw(a, b);
            else if (i % 20 == 9) handler.wait(a);
            else handler.withdrawEarned(a, b);
        }
        (uint256 atOnce, uint256 finalized, uint256 refunded) = _endings();
        assertGt(atOnce, 5, "paid at once");
        assertGt(finalized, 5, "finalized");
        assertGt(refunded, 5, "refunded");
        assertGt(handler.withdrawals(), 5, "withdrawals");
        assertGt(ledger.skipped(), 5, "skipped");
    }

    function _endings() internal view returns (uint256 atOnce, uint256 finalized, uint256 refunded) {
        bytes32[] memory jobIds = handler.jobIds();
        for (uint256 i = 0; i < jobIds.length; ++i) {
            Ledger.Job memory job = ledger.job(jobIds[i]);
            if (job.state == JobState.Refunded) ++refunded;
            if (job.state == JobState.Paid && job.submitted) ++finalized;
            if (job.state == JobState.Paid && !job.submitted) ++atOnce;
        }
    }
}
