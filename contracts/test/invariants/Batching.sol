// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result} from "../../src/interfaces/IJobEscrow.sol";
import {KeyVoucher} from "../Base.sol";
import {Books} from "./Books.sol";

/// @notice 7 and 10 of the design's invariants, wherever the market happens to be: a batch leads where its items would lead one
/// by one, and costs no more than they do.
/// @dev Tried out and undone, now and then, as it reads everything there is.
abstract contract Batching is Books {
    function _assertBatch(address by, bytes memory whole, bytes[] memory items) internal {
        uint256 before = vm.snapshotState();
        uint256 apart;
        for (uint256 i = 0; i < items.length; ++i) {
            apart += _gasOf(by, items[i]);
        }
        bytes32 then = _everything();
        vm.revertToState(before);
        uint256 together = _gasOf(by, whole);
        assertEq(_everything(), then, "a batch does something else than its items");
        assertLe(together, apart, "a batch costs more than its items");
        vm.revertToStateAndDelete(before);
        // What was undone is not for the books.
        vm.getRecordedLogs();
        ++happened["batch"];
    }

    /// @dev Items that fail are skipped: no batch fails.
    function _gasOf(address by, bytes memory call) private returns (uint256) {
        vm.prank(by);
        uint256 gas = gasleft();
        (bool done,) = address(escrow).call(call);
        gas -= gasleft();
        assertTrue(done, "a batch failed");
        return gas;
    }

    /// @dev All that can be read of the market and could change by a batch.
    function _everything() private view returns (bytes32 seen) {
        for (uint256 i = 0; i < _ids.length; ++i) {
            (JobState state, uint128 locked, uint64 finalizeAt, address by) = escrow.job(_ids[i]);
            seen = keccak256(abi.encode(seen, state, locked, finalizeAt, by, escrow.cancelAt(_ids[i])));
        }
        for (uint256 t = 0; t < TOKENS; ++t) {
            seen = keccak256(abi.encode(seen, escrow.fees(_tokens[t])));
            for (uint256 r = 0; r < REQUESTERS; ++r) {
                (uint128 free, uint128 thawing, uint64 thawEnd) = escrow.account(_who[r], _tokens[t]);
                seen = keccak256(abi.encode(seen, free, thawing, thawEnd, _sessionOf(r, t)));
            }
            for (uint256 n = 0; n < NODES; ++n) {
                seen = keccak256(abi.encode(seen, escrow.earned(_nodes[n].addr, _tokens[t]), _channelsOf(n, t)));
            }
        }
        for (uint256 n = 0; n < NODES; ++n) {
            (uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) = registry.recordOf(_nodes[n].addr);
            (uint128 active, uint128 unbonding,) = registry.stakeOf(_nodes[n].addr);
            seen = keccak256(abi.encode(seen, bonds, paid, disputed, lost, active, unbonding));
        }
    }

    function _sessionOf(uint256 r, uint256 t) private view returns (uint128 left) {
        (left,) = escrow.session(_who[r], _sessionKeys[r].addr, _tokens[t]);
    }

    function _channelsOf(uint256 n, uint256 t) private view returns (bytes32 seen) {
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            (uint256 claimed, uint64 covered) = escrow.channel(_who[r], _nodes[n].addr, _tokens[t]);
            (uint256 reserved, uint256 thawing, uint64 thawEnd) =
                escrow.reservation(_who[r], _nodes[n].addr, _tokens[t]);
            seen = keccak256(abi.encode(seen, claimed, covered, reserved, thawing, thawEnd));
        }
    }

    // ── The batches there are ───────────────────────────────────────────────────────────────────────────────────────

    function _assertResults(Result[] memory results) internal {
        bytes[] memory items = new bytes[](results.length);
        for (uint256 i = 0; i < results.length; ++i) {
            items[i] = abi.encodeCall(IJobEscrow.submitResults, (_batch(results[i])));
        }
        _assertBatch(settler, abi.encodeCall(IJobEscrow.submitResults, (results)), items);
    }

    function _assertFinalizes(Order[] memory orders) internal {
        bytes[] memory items = new bytes[](orders.length);
        for (uint256 i = 0; i < orders.length; ++i) {
            items[i] = abi.encodeCall(IJobEscrow.finalize, (_batch(orders[i])));
        }
        _assertBatch(settler, abi.encodeCall(IJobEscrow.finalize, (orders)), items);
    }

    function _assertRefunds(Order[] memory orders) internal {
        bytes[] memory items = new bytes[](orders.length);
        for (uint256 i = 0; i < orders.length; ++i) {
            items[i] = abi.encodeCall(IJobEscrow.refundExpired, (_batch(orders[i])));
        }
        _assertBatch(settler, abi.encodeCall(IJobEscrow.refundExpired, (orders)), items);
    }

    function _assertRedeems(uint256 n, uint256 t, KeyVoucher[] memory vouchers) internal {
        bytes[] memory items = new bytes[](vouchers.length);
        for (uint256 i = 0; i < vouchers.length; ++i) {
            KeyVoucher[] memory one = new KeyVoucher[](1);
            one[0] = vouchers[i];
            items[i] = _redeemCall(_nodes[n].addr, _tokens[t], one);
        }
        _assertBatch(_nodes[n].addr, _redeemCall(_nodes[n].addr, _tokens[t], vouchers), items);
    }
}
