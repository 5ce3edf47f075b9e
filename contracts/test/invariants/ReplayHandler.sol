// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, Result, SkipReason} from "../../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";
import {KeyVoucher} from "../Base.sol";
import {TestToken} from "../mocks/TestToken.sol";
import {MarketHandler} from "./MarketHandler.sol";

/// @notice 4 of the design's invariants: brings what was signed for the escrow to where it was not signed for, which is the same
/// escrow on another chain, and another one beside it in which the same people have as much money and stake.
contract ReplayHandler is MarketHandler {
    IJobEscrow internal twin;

    constructor() {
        (IJobEscrow ours, INodeRegistry registryOfOurs) = (escrow, registry);
        registry = _deployRegistry();
        twin = _deployEscrow(address(registry));
        for (uint256 n = 0; n < NODES; ++n) {
            _register(_nodes[n].addr, 2 * MIN_STAKE);
        }
        (escrow, registry) = (ours, registryOfOurs);
        for (uint256 r = 0; r < REQUESTERS; ++r) {
            for (uint256 t = 0; t < TOKENS; ++t) {
                _fundTwin(_who[r], _tokens[t]);
            }
        }
    }

    /// @dev More than all orders of all requesters cost.
    function _fundTwin(address to, address token_) private {
        uint256 value;
        if (token_ == NATIVE) {
            value = 1000 ether;
            vm.deal(address(this), value);
        } else {
            TestToken(token_).mint(address(this), 1000 ether);
            TestToken(token_).approve(address(twin), 1000 ether);
        }
        twin.depositFor{value: value}(to, token_, 1000 ether);
    }

    function elsewhere(uint256 a, uint256 b, uint256 how) external {
        Result[] memory results = new Result[](2);
        results[0] = _signedResultOf(a % _ids.length);
        results[1] = _signedResultOf(b % _ids.length);
        (uint256 r, uint256 n, uint256 t) = (a % REQUESTERS, b % NODES, how % TOKENS);
        bytes memory redemption = _redemptionOf(r, n, t);

        uint256 home = block.chainid;
        IJobEscrow other = how >> 8 & 1 == 0 ? escrow : twin;
        if (other == escrow) vm.chainId(home + 1);
        vm.record();
        vm.recordLogs();
        other.submitResults(results);
        vm.prank(_nodes[n].addr);
        (bool done,) = address(other).call(redemption);
        vm.chainId(home);
        assertTrue(done, "a redemption failed");
        (, bytes32[] memory writes) = vm.accesses(address(other));
        assertEq(writes.length, 0, "a signature had effect where it was not given for");
        _count(vm.getRecordedLogs());
    }

    /// @dev With the order's signature, whatever became of the order at home.
    function _signedResultOf(uint256 index) private view returns (Result memory result) {
        result = _resultOf(index);
        result.orderSignature = _sign(_keys[_requesterOf(index)], _ids[index]);
    }

    function _redemptionOf(uint256 r, uint256 n, uint256 t) private returns (bytes memory) {
        uint128 cumulative = type(uint96).max;
        bytes32 digest = _voucherDigest(_who[r], _nodes[n].addr, _tokens[t], cumulative, 0);
        KeyVoucher[] memory vouchers = new KeyVoucher[](1);
        (bytes32 sigR, bytes32 sigVs) = vm.signCompact(_keys[r].privateKey, digest);
        vouchers[0] = KeyVoucher(_who[r], cumulative, 0, sigR, sigVs);
        return _redeemCall(_nodes[n].addr, _tokens[t], vouchers);
    }

    /// @dev Those that nothing but their signature kept from being settled.
    function _count(Vm.Log[] memory logs) private {
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].topics[0] == IJobEscrow.Skipped.selector) {
                SkipReason reason = abi.decode(logs[i].data, (SkipReason));
                if (reason == SkipReason.BadOrderSignature) ++happened["order elsewhere"];
            } else if (logs[i].topics[0] == IJobEscrow.VoucherSkipped.selector) {
                (, SkipReason reason) = abi.decode(logs[i].data, (uint256, SkipReason));
                if (reason == SkipReason.BadVoucherSignature) ++happened["voucher elsewhere"];
            }
        }
    }
}
