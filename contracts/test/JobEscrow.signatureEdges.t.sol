// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow, JobState, Order, Result, SkipReason} from "../src/interfaces/IJobEscrow.sol";
import {Base, KeyVoucher} from "./Base.sol";

/// @notice As `EdgesTest`, of signatures.
contract SignatureEdgesTest is Base {
    uint256 private constant N = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141;
    uint256 private constant MAX_S = N / 2;
    /// @dev The x of the curve's generator; its y is even.
    uint256 private constant GENERATOR = 0x79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798;

    function _skipped(KeyVoucher[] memory vouchers) internal {
        uint128 cumulative = vouchers[vouchers.length - 1].cumulative;
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(requester.addr, node.addr, NATIVE, cumulative, SkipReason.BadVoucherSignature);
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
    }

    // ── Vouchers ────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev The precompile returns nothing for what is no signature: what stood in its place in memory, the requester of the
    /// voucher before, must not be taken for the signer.
    function test_NoSignatureIsNotThatOfTheVoucherBefore() external {
        _deposit(100);
        KeyVoucher[] memory vouchers = new KeyVoucher[](2);
        vouchers[0] = _keyVoucher(requester, 3, 0)[0];
        vouchers[1] = KeyVoucher(requester.addr, 50, 9, 0, 0);
        _skipped(vouchers);
        _assertChannel(3, 0, 0);
    }

    function _inverse(uint256 number) internal pure returns (uint256 result) {
        result = 1;
        for (uint256 exponent = N - 2; exponent != 0; exponent >>= 1) {
            if (exponent & 1 == 1) result = mulmod(result, number, N);
            number = mulmod(number, number, N);
        }
    }

    /// @dev The key whose signature of this digest, with one for its secret number, has this `s`.
    function _keyOf(bytes32 digest, uint256 s) internal pure returns (address) {
        return vm.addr(mulmod(addmod(s, N - uint256(digest) % N, N), _inverse(GENERATOR), N));
    }

    /// @dev The lowest `s` that is too high is refused, and its twin, the highest that is not, is taken.
    function test_TheLowestHighSignatureIsRefused() external {
        _deposit(100);
        bytes32 digest = _voucherDigest(requester.addr, node.addr, NATIVE, 5, 1);
        address key = _keyOf(digest, MAX_S + 1);
        vm.prank(requester.addr);
        escrow.authorizeSession(key, NATIVE, 100, uint64(block.timestamp));
        KeyVoucher[] memory vouchers = new KeyVoucher[](1);
        vouchers[0] = KeyVoucher(requester.addr, 5, 1, bytes32(GENERATOR), bytes32(MAX_S + 1));
        assertEq(ecrecover(digest, 27, bytes32(GENERATOR), bytes32(MAX_S + 1)), key);
        _skipped(vouchers);
        vouchers[0].vs = bytes32(MAX_S | 1 << 255);
        vm.prank(node.addr);
        escrow.redeem(node.addr, NATIVE, _packed(vouchers));
        _assertChannel(5, 1, 0);
    }

    // ── Orders ──────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Nobody's key is what recovering yields from no signature.
    function test_NoSignatureIsNotNobodys() external {
        Order memory order = _signedOrder(1, 0);
        order.requester = address(0);
        Result memory result = _result(order, node, 0);
        result.orderSignature = hex"00";
        _submitSkipped(result, SkipReason.BadOrderSignature);
    }

    /// @dev Only a wallet needs the gas that a wallet may spend.
    function test_AKeysBadSignatureIsSkippedWithLittleGas() external {
        Order memory order = _order();
        _open(order);
        Result memory result = _result(order);
        result.receiptSignature = "";
        _expectSkip(order, SkipReason.BadReceiptSignature);
        vm.prank(settler);
        escrow.submitResults{gas: 100_000}(_batch(result));
        _assertNothingWritten();
    }

    // ── Wallets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Of a wallet that runs GAS first, and accepts if 100,000 were there before.
    function _exactWallets() internal returns (Result memory result) {
        address wallet = makeAddr("wallet");
        vm.etch(wallet, hex"5a6201869e14631626ba7e0260e01b5f5260205ff3");
        vm.deal(settler, PRICE);
        vm.prank(settler);
        escrow.depositFor{value: PRICE}(wallet, NATIVE, PRICE);
        Order memory order = _signedOrder(1, PRICE);
        order.requester = wallet;
        result = _result(order);
        result.orderSignature = hex"00";
    }

    function test_AWalletIsGivenItsGasExactly() external {
        Result memory result = _exactWallets();
        _submit(result);
        _assertJob(escrow.jobIdOf(result.order), JobState.Paid, 0, 0, address(0));
    }

    /// @dev With the least gas that is enough it has all of it: nothing lies between that and a call that reverts. What is
    /// wrong with the result is found after the order's signature, and costs little.
    function test_AWalletIsGivenItsGasOrTheBatchReverts() external {
        Result memory result = _exactWallets();
        result.receiptSignature = "";
        bytes memory data = abi.encodeCall(IJobEscrow.submitResults, (_batch(result)));
        uint256 snapshot = vm.snapshotState();
        (uint256 tooLittle, uint256 enough) = (110_000, 400_000);
        bytes memory refused;
        while (enough - tooLittle > 1) {
            uint256 gas = (tooLittle + enough) / 2;
            (bool ok, bytes memory returned) = address(escrow).call{gas: gas}(data);
            if (ok) enough = gas;
            else (tooLittle, refused) = (gas, returned);
            vm.revertToState(snapshot);
        }
        assertEq(bytes4(refused), IJobEscrow.NotEnoughGas.selector);
        uint256 needed;
        assembly ("memory-safe") {
            needed := mload(add(refused, 0x44))
        }
        assertEq(needed, 102_587, "100,000 * 64 / 63 and a thousand");
        _expectSkip(result.order, SkipReason.BadReceiptSignature);
        (bool done,) = address(escrow).call{gas: enough}(data);
        assertTrue(done);
    }

    /// @dev As the compiler's own checks: without a reason.
    function test_RevertWhen_AMemberOverflowsWithoutAReason() external view {
        bytes memory data = abi.encodeCall(IJobEscrow.jobIdOf, (_order()));
        data[4] = 0x01;
        (bool ok, bytes memory reason) = address(escrow).staticcall(data);
        assertFalse(ok);
        assertEq(reason.length, 0);
    }
}
