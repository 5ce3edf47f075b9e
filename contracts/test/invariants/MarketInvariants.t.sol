// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Test} from "forge-std/Test.sol";

import {JobState, Order} from "../../src/interfaces/IJobEscrow.sol";
import {MarketHandler} from "./MarketHandler.sol";
import {ReplayHandler} from "./ReplayHandler.sol";

/// @notice What must hold after any calls by anybody; `check` says which of the design's invariants each part is. 4, 7 and 10
/// are asserted by `ReplayHandler` and `Batching` as the calls are made.
contract MarketAccountant is ReplayHandler {
    function check() external view {
        uint256[TOKENS] memory locked;
        uint256[NODES] memory bonds;
        for (uint256 i = 0; i < _ids.length; ++i) {
            (uint128 amount, bool bonded) = _checkJob(i);
            locked[i / PER_PAIR % TOKENS] += amount;
            if (bonded) ++bonds[i % PER_PAIR % NODES];
        }
        for (uint256 t = 0; t < TOKENS; ++t) {
            _checkMoney(t, locked[t]);
        }
        _checkChannels();
        _checkStakes(bonds);
    }

    /// @dev 2 and 4: a job ends once, and has something locked until then and not after.
    function _checkJob(uint256 i) private view returns (uint128 locked, bool bonded) {
        JobState state;
        (state, locked,,) = escrow.job(_ids[i]);
        bool ended = state == JobState.Paid || state == JobState.Refunded || state == JobState.Resolved;
        assertEq(_endings[_ids[i]], ended ? 1 : 0, "endings");
        if (ended || state == JobState.None) {
            assertEq(locked, 0, "locked");
            return (0, false);
        }
        uint256 bond = uint256(_orders[i].maxPrice) * 500 / 10_000;
        if (state == JobState.Open) assertEq(locked, _orders[i].maxPrice, "locked");
        else assertEq(locked, _priceOf(i) + (state == JobState.Disputed ? bond : 0), "locked");
        bonded = state != JobState.Open && _orders[i].arbiter != address(0);
    }

    /// @dev 1, and 9 for the token that keeps a fee: what is held is exactly what is owed, and what came in and did not leave.
    function _checkMoney(uint256 t, uint256 locked) private view {
        address token_ = _tokens[t];
        uint256 held = _held(token_);
        assertEq(held, _owedIdle(t) + locked, "held is not owed");
        assertEq(held, _in[token_] - _out[token_], "held is not what came in");
        // 3: the nodes have what was paid to them, to the unit.
        for (uint256 n = 0; n < NODES; ++n) {
            address to = _nodes[n].addr;
            uint256 earned = escrow.earned(to, token_);
            assertEq(earned + _withdrawn[to][token_], _netEarned[to][token_], "earned");
            assertEq(earned, _toldEarned[to][token_], "earned as told");
        }
        // The events alone give the state.
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            (uint128 free, uint128 thawing,) = escrow.account(_who[r], token_);
            assertEq(free, _toldFree[_who[r]][token_], "free as told");
            assertEq(thawing, _toldThawing[_who[r]][token_], "thawing as told");
        }
    }

    /// @dev 3 and 5: a channel pays for each of its orders once at the most, whichever rail pays; `claimed` never falls, of
    /// which the books take care as they go.
    function _checkChannels() private view {
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            for (uint256 n = 0; n < NODES; ++n) {
                for (uint256 t = 0; t < TOKENS; ++t) {
                    (uint256 claimed, uint64 covered) = escrow.channel(_who[r], _nodes[n].addr, _tokens[t]);
                    bytes32 id = _channelId(_who[r], _nodes[n].addr, _tokens[t]);
                    assertEq(claimed, _claimed[id], "claimed");
                    assertEq(covered, _covered[id], "covered");
                    (uint256 reserved,,) = escrow.reservation(_who[r], _nodes[n].addr, _tokens[t]);
                    assertEq(reserved, _toldReserved[id], "reserved as told");
                    assertLe(claimed, _owedByVoucher(r, n, t, PER_PAIR), "the channel paid too much");
                }
            }
        }
    }

    /// @dev 6: the registry holds the stakes and nothing else, every bond is of a job that waits, and the stake covers them.
    function _checkStakes(uint256[NODES] memory waiting) private view {
        uint256 sum;
        for (uint256 n = 0; n < NODES; ++n) {
            (uint128 active, uint128 unbonding,) = registry.stakeOf(_nodes[n].addr);
            (uint32 bonds,,,) = registry.recordOf(_nodes[n].addr);
            assertEq(bonds, waiting[n], "bonds");
            assertGe(uint256(active) + unbonding, uint256(bonds) * BOND, "stake below its bonds");
            assertEq(registry.isStaked(_nodes[n].addr), active >= registry.minStake(), "isStaked");
            sum += uint256(active) + unbonding;
        }
        assertEq(address(registry).balance, sum, "registry");
        assertEq(sum, _staked - _unbonded - _slashed, "stakes");
    }

    /// @dev 8: paused for good and without an owner, everybody still gets everything out.
    function windUp() external {
        for (uint256 t = 0; t < TOKENS; ++t) {
            if (escrow.fees(_tokens[t]) == 0) continue;
            vm.prank(owner);
            escrow.withdrawFees(_tokens[t], owner);
        }
        vm.startPrank(owner);
        escrow.setPaused(true);
        registry.setPaused(true);
        Ownable(address(escrow)).renounceOwnership();
        Ownable(address(registry)).renounceOwnership();
        vm.stopPrank();
        skip(MAX_LIFE + ARBITER_PERIOD);
        Order[] memory orders = _orders;
        escrow.finalize(orders);
        escrow.refundExpired(orders);
        _thawAll();
        skip(THAW_PERIOD);
        _releaseAll();
        skip(THAW_PERIOD);
        _withdrawAll();
        for (uint256 t = 0; t < TOKENS; ++t) {
            // Those of jobs finalized since are the owner's, and there is none any more.
            assertEq(_held(_tokens[t]), escrow.fees(_tokens[t]), "trapped");
        }
        skip(UNBONDING_PERIOD);
        for (uint256 n = 0; n < NODES; ++n) {
            _unbondAll(_nodes[n].addr);
        }
        assertEq(address(registry).balance, 0, "stake trapped");
    }

    function _thawAll() private {
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            for (uint256 t = 0; t < TOKENS; ++t) {
                for (uint256 n = 0; n < NODES; ++n) {
                    (uint256 reserved,,) = escrow.reservation(_who[r], _nodes[n].addr, _tokens[t]);
                    if (reserved == 0) continue;
                    vm.prank(_who[r]);
                    escrow.thawReservation(_nodes[n].addr, _tokens[t], reserved);
                }
            }
        }
    }

    function _releaseAll() private {
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            vm.startPrank(_who[r]);
            for (uint256 t = 0; t < TOKENS; ++t) {
                for (uint256 n = 0; n < NODES; ++n) {
                    (uint256 reserved,,) = escrow.reservation(_who[r], _nodes[n].addr, _tokens[t]);
                    if (reserved != 0) escrow.releaseReservation(_nodes[n].addr, _tokens[t]);
                }
                uint256 free = _free(_who[r], _tokens[t]);
                if (free != 0) escrow.thaw(_tokens[t], free);
            }
            vm.stopPrank();
        }
    }

    function _withdrawAll() private {
        for (uint256 t = 0; t < TOKENS; ++t) {
            for (uint256 r = 0; r < REQUESTERS; ++r) {
                (, uint128 thawing,) = escrow.account(_who[r], _tokens[t]);
                if (thawing == 0) continue;
                vm.prank(_who[r]);
                escrow.withdraw(_tokens[t], _who[r]);
            }
            for (uint256 n = 0; n < NODES; ++n) {
                if (escrow.earned(_nodes[n].addr, _tokens[t]) == 0) continue;
                vm.prank(_nodes[n].addr);
                escrow.withdrawEarned(_tokens[t], _nodes[n].addr);
            }
        }
    }

    function _unbondAll(address by) private {
        (uint128 active, uint128 unbonding,) = registry.stakeOf(by);
        vm.startPrank(by);
        if (active != 0) registry.startUnbond(active);
        skip(UNBONDING_PERIOD);
        if (active != 0 || unbonding != 0) registry.finishUnbond();
        vm.stopPrank();
    }
}

contract MarketInvariantsTest is Test {
    MarketAccountant internal market;

    function setUp() external {
        market = new MarketAccountant();
        vm.warp(1_700_000_000);
        targetContract(address(market));
        targetSelector(FuzzSelector({addr: address(market), selectors: _selectors()}));
    }

    /// @dev What brings jobs along comes more often.
    function _selectors() internal pure returns (bytes4[] memory selectors) {
        selectors = new bytes4[](33);
        selectors[0] = selectors[1] = selectors[2] = MarketHandler.deposit.selector;
        selectors[3] = MarketHandler.thaw.selector;
        selectors[4] = MarketHandler.withdraw.selector;
        selectors[5] = MarketHandler.reserve.selector;
        selectors[6] = MarketHandler.thawReservation.selector;
        selectors[7] = MarketHandler.releaseReservation.selector;
        selectors[8] = MarketHandler.authorize.selector;
        selectors[9] = MarketHandler.revoke.selector;
        selectors[10] = selectors[11] = MarketHandler.open.selector;
        selectors[12] = MarketHandler.cancel.selector;
        selectors[13] = MarketHandler.refund.selector;
        selectors[14] = MarketHandler.accept.selector;
        selectors[15] = selectors[16] = MarketHandler.dispute.selector;
        selectors[17] = MarketHandler.resolve.selector;
        selectors[18] = selectors[19] = selectors[20] = MarketHandler.submit.selector;
        selectors[21] = MarketHandler.finalize.selector;
        selectors[22] = MarketHandler.redeem.selector;
        selectors[23] = MarketHandler.redeemSigned.selector;
        selectors[24] = MarketHandler.setSettler.selector;
        selectors[25] = MarketHandler.withdrawEarned.selector;
        selectors[26] = MarketHandler.stake.selector;
        selectors[27] = MarketHandler.startUnbond.selector;
        selectors[28] = MarketHandler.finishUnbond.selector;
        selectors[29] = MarketHandler.register.selector;
        selectors[30] = MarketHandler.own.selector;
        selectors[31] = MarketHandler.wait.selector;
        selectors[32] = ReplayHandler.elsewhere.selector;
    }

    function invariant_TheBooksAgree() external view {
        market.check();
    }

    function afterInvariant() external {
        market.windUp();
    }

    /// @dev Invariants say nothing of what never happens: random calls do bring about everything.
    function test_TheHandlerGetsEverywhere() external {
        bytes4[] memory selectors = _selectors();
        for (uint256 i = 0; i < 3000; ++i) {
            uint256 seed = uint256(keccak256(abi.encode(i)));
            bytes memory arguments = abi.encode(seed >> 8, seed >> 16, seed >> 32, seed >> 48, seed >> 64);
            (bool done, bytes memory reason) =
                address(market).call(bytes.concat(selectors[seed % selectors.length], arguments));
            assertTrue(done, string(reason));
            if (i % 1000 == 999) market.check();
        }
        string[38] memory events = [
            "deposit",
            "depositWithPermit",
            "thaw",
            "withdraw",
            "reserve",
            "thawReservation",
            "releaseReservation",
            "authorize",
            "revoke",
            "open",
            "cancel",
            "accept",
            "dispute",
            "resolve",
            "redeem",
            "redeemSigned",
            "setSettler",
            "withdrawEarned",
            "stake",
            "startUnbond",
            "finishUnbond",
            "register",
            "update",
            "setFeeBps",
            "withdrawFees",
            "result",
            "result skipped",
            "voucher skipped",
            "opened job paid",
            "signed order paid",
            "redeemed",
            "redeemed from a reservation",
            "refunded",
            "given back",
            "slashed",
            "batch",
            "order elsewhere",
            "voucher elsewhere"
        ];
        for (uint256 i = 0; i < events.length; ++i) {
            assertGt(market.happened(events[i]), 0, events[i]);
        }
        market.windUp();
    }
}
